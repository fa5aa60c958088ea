"""Numbers that are not finite: named by their rows, and kept out of the weights.

A rank that meets one makes its loss NaN. The reduction of the gradients, which runs anyway, carries that to every
rank, and all of them take the same decision at the gradient norm that the Trainer computes anyway: no collective more.
"""

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from fastkto.errors import InputError
from fastkto.head.fused_kto import FusedKTO

logger = logging.get_logger(__name__)

KINDS = ("the reference's log-prob", "the policy's log-prob", "the log-ratio of the mismatched pair")
IN_A_ROW = 10  # skipped steps after which no further one can be expected to help


def check_optimizer(name: str) -> None:
    """Raise `InputError` for an optimizer that has changed weights before the gradients can be looked at."""
    if name.endswith("_layerwise") or name in ("lomo", "adalomo"):
        expected = "an optimizer that steps once all gradients are there: this one would put a NaN into the weights"
        plain = name.removesuffix("_layerwise")
        raise InputError("optim", name, expected, f"Use {'adafactor' if plain == name else plain}.")


class FiniteWatch(TrainerCallback):
    """Drops an optimizer step whose log-probs, loss or gradients are not finite; then goes on, or stops the run.

    `action`: "stop" or "skip". The weights stay as they were before the step. `error` says why the run was stopped.
    """

    def __init__(self, action: str) -> None:
        self.action = action
        self.error: InputError | None = None
        self.skipped, self.in_a_row = 0, 0
        self.scaled = self.too_late = False
        self.norm: torch.Tensor | None = None
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def attach(self, accelerator: Any) -> None:
        """See every gradient norm that the Trainer asks its accelerator for."""
        clip = accelerator.clip_grad_norm_

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.norm = clip(*args, **kwargs)
            return self.norm

        accelerator.clip_grad_norm_ = watched
        self.scaled = getattr(accelerator, "scaler", None) is not None  # fp16: an infinite norm is the scaler's matter
        self.too_late = accelerator.distributed_type == "DEEPSPEED"  # it steps within the backward
        if self.too_late and self.action == "skip":
            raise InputError("on_nonfinite", "skip", '"stop" with DeepSpeed, which steps by itself', "Use FSDP2.")

    def guard(
        self, loss: torch.Tensor, out: FusedKTO, ref_logps: torch.Tensor, row_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, NaN where anything of its rows is not finite, and that verdict; nothing here waits."""
        kl_B = out.kl if out.kl.numel() else torch.zeros_like(out.logps)
        broken_3B = torch.stack([~x.isfinite() for x in (ref_logps, out.logps, kl_B)])
        self.seen.append((row_ids, broken_3B))
        bad = broken_3B.any() | ~loss.detach().isfinite()
        return loss * torch.where(bad, torch.nan, 1.0).to(loss.dtype), bad

    def figures(self) -> dict[str, float]:
        """What a log line tells of skipped steps: how many since training began; nothing where none was."""
        return {"skipped_steps": float(self.skipped)} if self.skipped else {}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Forget an earlier call."""
        self.error, self.norm, self.seen, self.skipped, self.in_a_row = None, None, [], 0, 0

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Take a bad step's gradients away before the optimizer sees them."""
        norm, seen = self.norm, self.seen
        self.norm, self.seen = None, []
        verdicts = [broken.any() for _, broken in seen]
        if norm is not None and not self.scaled:
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)
            verdicts.append(~norm.isfinite().to(verdicts[0].device if verdicts else norm.device))
        if not verdicts or not torch.stack([x.reshape(()) for x in verdicts]).any().item():
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        if not self.scaled:  # a scaler skips such a step itself, and needs its gradients for that
            for parameter in model.parameters():
                parameter.grad = None
        what = f"{_named(seen)} at step {state.global_step + 1}"
        if self.action == "skip" and self.in_a_row < IN_A_ROW:
            logger.warning(f"{what}: the step is skipped, the weights stay as they were.")
            return
        fix = "Look at these rows, lower learning_rate, or use bf16 or float32 instead of fp16."
        if self.action == "stop":
            fix += ' on_nonfinite="skip" leaves such steps out and counts them.'
        else:
            what = f"{what}, {self.in_a_row} consecutive steps"
        if not self.too_late and str(getattr(args.save_strategy, "value", args.save_strategy)) != "no":
            control.should_save = True
            fix += f" checkpoint-{state.global_step + 1} holds the weights from before it."
        self.error = InputError("loss", what, "finite numbers", fix)
        control.should_training_stop = True


def _named(seen: list[tuple[torch.Tensor, torch.Tensor]]) -> str:
    """Which numbers of which rows; only called when a step has gone wrong."""
    parts = []
    for kind, name in enumerate(KINDS):
        rows = sorted({int(row) for ids, broken in seen for row in ids[broken[kind]].tolist()})
        if rows:
            more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
            parts.append(f"{name} of rows {', '.join(map(str, rows[:8]))}{more}")
    if not parts:
        rows = sorted({int(row) for ids, _ in seen for row in ids.tolist()})
        return f"NaN or inf in the gradients (this process held rows {', '.join(map(str, rows[:16]))})"
    return f"NaN or inf in {' and in '.join(parts)}"
