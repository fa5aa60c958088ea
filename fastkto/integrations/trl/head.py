"""`patch_trl_head`: fastkto's LM head under every TRL trainer, and nothing else changed.

Legend: N scored positions, D hidden, V vocabulary.
"""

import importlib
from types import TracebackType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from fastkto.errors import InputError
from fastkto.head.backends.base import HeadInputs
from fastkto.head.backends.tiles import Folded, TileBackend
from fastkto.head.logprobs import head_inputs, token_logprobs, token_stats
from fastkto.integrations.versions import require_parameters, require_version

KNOWN = ("1.16.0",)
_OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
_ARGUMENTS = (
    *("hidden", "weight", "bias", "targets", "temperature", "chunk_size"),
    *("final_logit_softcapping", "logit_scale", "outputs"),
)

Results = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


class HeadPatch:
    """What `patch_trl_head` returns. `unpatch`, or the end of a `with`, brings back what it replaced."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def unpatch(self) -> None:
        """TRL's own head again; does nothing the second time, or where another patch had been there before."""
        if self._original is not None:
            _home()._ChunkedLogProbFunction = self._original
            self._original = None

    def __enter__(self) -> "HeadPatch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unpatch()


def patch_trl_head() -> HeadPatch:
    """Let every TRL trainer of this process, present and future, score tokens with `fastkto.token_stats`.

    Patching twice changes nothing more.

    Raises:
        ValueError: a version of TRL, or a head in it, that this was not written for.
    """
    require_version("trl", known=KNOWN, integration="patch_trl_head")
    home = _home()
    original = home._ChunkedLogProbFunction
    if original is TRLHead:
        return HeadPatch(None)
    require_parameters(getattr(original, "forward", original), *_ARGUMENTS, integration="patch_trl_head")
    home._ChunkedLogProbFunction = TRLHead
    return HeadPatch(original)


def _home() -> Any:
    """The module whose `_ChunkedLogProbFunction` every trainer looks up at every call."""
    return importlib.import_module("trl.trainer.utils")


class TRLHead:
    """Stands in for TRL's autograd function of the LM head."""

    @staticmethod
    def apply(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = _OUTPUTS,
    ) -> Results:
        """`z = softcap(scale * (hidden @ weight.T + bias)) / temperature`: log-probs of the targets, and `outputs`.

        Args:
            hidden: (N, D); weight: (V, D); bias: (V,) or None; targets: (N,) int64.
            chunk_size: of no effect: fastkto's tiles have their own sizes.
            outputs: those of "entropy", "log_sum_sq_probs", "mean_logits" and "is_top1" that are wanted.

        Returns:
            (N,) each, None where not wanted: log-probs, entropy (both carry a gradient), `log(sum(p**2))`, mean logit,
            and whether the target is the first largest logit.
        """
        if hasattr(weight, "ds_id"):
            fix = "Leave patch_trl_head out under ZeRO-3."
            raise InputError("lm_head.weight", "sharded by ZeRO-3", "a weight that is whole in the backward", fix)
        softcap = None if final_logit_softcapping is None else final_logit_softcapping / temperature
        scale = logit_scale / temperature
        entropy = mean_logits = log_sum_sq_probs = is_top1 = None
        if "entropy" in outputs or "mean_logits" in outputs:
            logps, entropy, mean_logits = token_stats(hidden, weight, targets, bias=bias, softcap=softcap, scale=scale)
        else:
            logps = token_logprobs(hidden, weight, targets, bias=bias, softcap=softcap, scale=scale)
        if "entropy" in outputs and torch.is_grad_enabled():
            rest = temperature, chunk_size, final_logit_softcapping, logit_scale
            entropy = _Entropy.apply(entropy, hidden, weight, bias, targets, *rest)
        if "log_sum_sq_probs" in outputs or "is_top1" in outputs:
            with torch.no_grad():
                extras = _Extras(head_inputs(hidden, weight, targets, bias, softcap, scale)[0])
            log_sum_sq_probs = extras.log_sum_sq_probs_N if "log_sum_sq_probs" in outputs else None
            is_top1 = extras.is_top1_N if "is_top1" in outputs else None
        entropy = entropy if "entropy" in outputs else None
        mean_logits = mean_logits if "mean_logits" in outputs else None
        return logps, entropy, log_sum_sq_probs, mean_logits, is_top1


class _Entropy(torch.autograd.Function):
    """fastkto's entropy; its gradient, which GRPO's entropy bonus asks for, is TRL's own."""

    @staticmethod
    def forward(
        ctx: Any,
        entropy_N: torch.Tensor,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        *rest: Any,
    ) -> torch.Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N)
        device = hidden_ND.device.type
        ctx.rest, ctx.autocast = rest, (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        return entropy_N.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if grad_N is None:
            return (None,) * 9
        *tensors, targets_N = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:4]
        inputs: list[Any] = [
            x if x is None else x.detach().requires_grad_(want) for x, want in zip(tensors, wanted, strict=True)
        ]
        own = importlib.import_module("trl.kernels").ChunkedLogProbFunction
        enabled, dtype = ctx.autocast
        with torch.enable_grad(), torch.autocast(grad_N.device.type, dtype, enabled=enabled):
            entropy_N = own.apply(*inputs, targets_N, *ctx.rest, ("entropy",))[1]
        leaves = [x for x, want in zip(inputs, wanted, strict=True) if want]
        grads = iter(torch.autograd.grad(entropy_N, leaves, grad_N))
        return None, *(next(grads) if want else None for want in wanted), *(None,) * 5


class _Extras(TileBackend):
    """What fastkto's head does not return, from a pass of its own: `log(sum(p**2))`, and the target's rank among all.

    Of equal logits only the first counts as the largest.
    """

    def __init__(self, head: HeadInputs) -> None:
        self.squares_N = head.hidden_ND.new_zeros(head.hidden_ND.shape[:1], dtype=head.sum_dtype)
        self.before_N = torch.full_like(self.squares_N, -torch.inf)  # the largest logit before the target
        self.folded = Folded.start(head, stats=False)
        self.forward(head, stats=False, unit_dx=False)
        self.log_sum_sq_probs_N = self.squares_N.log() - 2 * self.folded.sum_N.log()
        self.is_top1_N = (self.folded.target_N >= self.folded.max_N) & (self.folded.target_N > self.before_N)

    def fold(self, tile: torch.Tensor, targets: torch.Tensor, start: int, folded: Folded, part: slice) -> None:
        """Take in a tile of logits, columns [start, start + width)."""
        columns = torch.arange(start, start + tile.shape[1], device=tile.device)
        before = tile.masked_fill(columns >= targets[:, None], -torch.inf).amax(1)
        self.before_N[part] = torch.maximum(self.before_N[part], before)
        rescale = folded.max_N[part].clone()
        super().fold(tile, targets, start, folded, part)
        rescale = (rescale - folded.max_N[part]).exp()
        self.squares_N[part] *= rescale.square()
        self.squares_N[part] += (tile - folded.max_N[part, None]).mul_(2).exp_().sum(1)
        self.folded = folded
