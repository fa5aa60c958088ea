"""What happens around the steps: log file, epoch of the sampler, moving reference."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from fastkto.disk import METRICS_FILE, writing
from fastkto.errors import InputError


class MetricsFile(TrainerCallback):
    """`state.log_history` as it grows, one JSON object a line in `metrics.jsonl`.

    A resumed run starts from its checkpoint's lines. A NaN is written as NaN, which Python, pandas and jq read.
    """

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the file, or put it back to the step that training resumes from."""
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / METRICS_FILE
        with writing("output_dir", path, "the log"):
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(".jsonl.new")
            new.write_text("".join(map(_json_line, state.log_history)), encoding="utf-8")
            os.replace(new, path)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Append the newest line."""
        if state.is_world_process_zero and state.log_history:
            path = Path(args.output_dir) / METRICS_FILE
            with writing("output_dir", path, "the log"):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    file.write(_json_line(state.log_history[-1]))


def _json_line(line: dict[str, Any]) -> str:
    """One line; a value that JSON does not know (a tensor or numpy number of a user's own log call) as its number."""
    return json.dumps(line, default=float) + "\n"


class LogAtCheckpoint(TrainerCallback):
    """A log line with every checkpoint: nothing is then counted half before a resume and half after it. And with the
    last step: the figures of the steps since the line before it would be lost.
    """

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log before a checkpoint by steps, and at the end."""
        last = state.global_step >= state.max_steps or control.should_training_stop
        control.should_log |= control.should_save or last

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log before a checkpoint by epochs."""
        control.should_log |= control.should_save


class SamplerEpoch(TrainerCallback):
    """Tell the trainer's sampler its epoch: accelerate reaches it through some wrappers and not through others."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A run that resumes in the middle of an epoch gets that epoch's order."""
        if self.trainer.sampler is not None:
            self.trainer.sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))


class MovingReference(TrainerCallback):
    """TR-DPO (arXiv 2404.09656): every tau steps, reference = alpha * policy + (1 - alpha) * reference.

    `save` puts the reference into a checkpoint, before the file that makes it whole; `load` takes it from there.
    """

    file = "reference.pt"

    def __init__(self, policy: nn.Module, reference: nn.Module) -> None:
        self.policy, self.reference = policy, reference

    def save(self, checkpoint: str) -> None:
        """Put the reference beside the policy's weights."""
        torch.save(self.reference.state_dict(), Path(checkpoint) / self.file)

    def load(self, checkpoint: str) -> None:
        """The reference as it was when the checkpoint was written."""
        path = Path(checkpoint) / self.file
        if not path.is_file():
            fix = "Resume from a checkpoint of a run with sync_ref_model."
            raise InputError("resume_from_checkpoint", checkpoint, f"a checkpoint that holds {self.file}", fix)
        self.reference.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    @torch.no_grad()
    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the reference when its step has come."""
        if state.global_step % args.ref_model_sync_steps == 0:
            policy = dict(self.policy.named_parameters())
            for name, parameter in self.reference.named_parameters():
                parameter.lerp_(policy[name].to(parameter.dtype), args.ref_model_mixup_alpha)
