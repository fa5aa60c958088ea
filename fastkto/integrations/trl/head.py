"""`patch_trl_head`: fastkto's LM head under every TRL trainer, and nothing else changed.

Legend: N scored positions, D hidden, V vocabulary.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.utils import logging

from fastkto.errors import InputError
from fastkto.head.backends.base import HeadInputs
from fastkto.head.backends.tiles import Folded, TileBackend
from fastkto.head.logprobs import head_inputs, token_logprobs, token_stats
from fastkto.integrations.seams import require_seams

logger = logging.get_logger(__name__)
_OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")

Results = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


class HeadPatch:
    """What `patch_trl_head` returns. `unpatch`, or the end of a `with`, brings back what it replaced."""

    def __init__(self, patched: Any) -> None:
        self._patched = patched

    def unpatch(self) -> None:
        """TRL's own head again; does nothing the second time, or where another patch had been there before."""
        if self._patched is not None:
            del self._patched.apply
            self._patched = None

    def __enter__(self) -> "HeadPatch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unpatch()


def patch_trl_head() -> HeadPatch:
    """Let every TRL trainer of this process, present and future, score tokens with `fastkto.token_stats`.

    Patching twice changes nothing more. Up to TRL 1.14 most trainers make logits, which this leaves alone, and a line
    says so.

    Raises:
        ValueError: a head that this was not written for.
    """
    version = require_seams("trl head")
    original = importlib.import_module("trl.trainer.utils")._ChunkedLogProbFunction
    if "apply" in vars(original):
        return HeadPatch(None)
    form = _form(original)
    if form is not TRLHead.apply:
        logger.warning_once(
            f"TRL {version} makes logits for most of its trainers; patch_trl_head changes those only that have its "
            "chunked head: AsyncGRPO, and in TRL 1.14 GRPO, DPO and KTO with use_liger_kernel. For any other KTO take "
            "fastkto.integrations.trl.KTOTrainer."
        )
    original.apply = staticmethod(form)
    return HeadPatch(original)


def _form(original: Any) -> Callable[..., tuple[torch.Tensor | None, ...]]:
    """Our head with the arguments and results of this TRL's: they grew in 1.13 and in 1.15."""
    parameters = inspect.signature(original.forward).parameters
    return TRLHead.apply if "outputs" in parameters else _with_bias if "bias" in parameters else _without_bias


def _with_bias(*arguments: Any) -> tuple[torch.Tensor | None, ...]:
    """Log-probs and entropy."""
    return functools.partial(TRLHead.apply, outputs=("entropy",))(*arguments)[:2]


def _without_bias(hidden: torch.Tensor, weight: torch.Tensor, *rest: Any) -> tuple[torch.Tensor | None, ...]:
    """The same, of a head without a bias."""
    return _with_bias(hidden, weight, None, *rest)


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
        enabled, dtype = ctx.autocast
        with torch.enable_grad(), torch.autocast(grad_N.device.type, dtype, enabled=enabled):
            entropy_N = _own_entropy(*inputs, targets_N, *ctx.rest)
        leaves = [x for x, want in zip(inputs, wanted, strict=True) if want]
        grads = iter(torch.autograd.grad(entropy_N, leaves, grad_N))
        return None, *(next(grads) if want else None for want in wanted), *(None,) * 5


def _own_entropy(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor, *rest: Any
) -> torch.Tensor:
    """By TRL's own head, which the patch covers."""
    own = importlib.import_module("trl.trainer.utils")._ChunkedLogProbFunction
    apply, form = super(own, own).apply, _form(own)
    bias = () if form is _without_bias else (bias_V,)
    outputs = (("entropy",),) if form is TRLHead.apply else ()
    entropy_N: torch.Tensor = apply(hidden_ND, weight_VD, *bias, targets_N, *rest, *outputs)[1]
    return entropy_N


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
