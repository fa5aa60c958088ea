"""The LM head: hidden states to token log-probs, without logits in memory. Chooses the backend.

Legend: N scored positions, D hidden, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastkto.errors import InputError
from fastkto.head.backends import chosen_name
from fastkto.head.backends.base import IGNORE_INDEX, HeadInputs, Wanted
from fastkto.head.ops import run_forward

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class TokenStats(NamedTuple):
    """Per scored position (N,), float32 (float64 for float64 inputs). Only `logps` carries a gradient."""

    logps: torch.Tensor
    entropy: torch.Tensor
    """nats"""
    mean_logits: torch.Tensor


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    backend: str = "auto",
) -> torch.Tensor:
    """`(hidden @ weight.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]`, in O(N) memory beside one tile.

    With bias, scale and softcap the logits are `softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)`.

    Args:
        hidden: (N, D) hidden states at the positions that predict a scored token; float64/32/16 or bfloat16.
        weight: (V, D) of the LM head. Where it needs no gradient none is computed or allocated.
        targets: (N,) int64 token ids in [0, V); -100 gives log-prob 0 and no gradient.
        bias: (V,) or None.
        softcap: final logit softcap (Gemma 2), above 0, or None.
        scale: factor on the logits before the softcap (the inverse of a config's `logits_scaling`).
        backend: "auto", or a backend's name; one that is not there is an error.

    Returns:
        (N,) log-probs in nats, float32 (float64 for float64 inputs). Under autocast the GEMM runs in the autocast
        dtype; logits, sums and gradient sums stay in float32, and gradients come back in each input's dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a target out of range (seen on the CPU only: reading
            values would make a GPU wait), an unknown or absent backend.

    Source: eq. (1) of the contract; arXiv 2402.01306, section 3.
    """
    head, wanted = head_inputs(hidden, weight, targets, bias, softcap, scale)
    name = chosen_name(backend, str(hidden.device), head.compute_dtype)
    return run_forward(name, head, wanted, stats=False).logps_N


def token_stats(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    backend: str = "auto",
) -> TokenStats:
    """`token_logprobs` with the entropy and the mean logit of each position, from the same pass; same arguments."""
    head, wanted = head_inputs(hidden, weight, targets, bias, softcap, scale)
    name = chosen_name(backend, str(hidden.device), head.compute_dtype)
    out: Any = run_forward(name, head, wanted, stats=True)
    return TokenStats(out.logps_N, out.entropy_N, out.mean_logits_N)


def head_inputs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    softcap: float | None,
    scale: float,
) -> tuple[HeadInputs, Wanted]:
    """Check the arguments; settle the compute dtype and which gradients are wanted, before autograd hides both."""
    check_head_arguments(hidden, weight, targets, bias, softcap)
    tracking = torch.is_grad_enabled()
    wanted = Wanted(*(tracking and x is not None and x.requires_grad for x in (hidden, weight, bias)))
    return HeadInputs(hidden, weight, targets, bias, softcap, scale, compute_dtype(hidden)), wanted


def compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    """Of the GEMMs' operands: the autocast dtype where on, else that of the hidden states; float64 stays float64."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def check_head_arguments(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    softcap: float | None,
) -> None:
    """Raise `InputError` for arguments that do not fit together; values are read on the CPU only."""
    for name, tensor in (("hidden", hidden), ("weight", weight), ("targets", targets), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, torch.Tensor):
            raise InputError(name, type(tensor).__name__, "a tensor", "Convert it with torch.as_tensor.")
        if name != "targets" and tensor.dtype not in DTYPES:
            raise InputError(name, tensor.dtype, "a floating dtype", "A quantised head has to go through its module.")
        if tensor.device != hidden.device:
            raise InputError(name, str(tensor.device), f"the device of hidden, {hidden.device}", "Move it there.")
    if hidden.ndim != 2:
        fix = "Select the scored positions first, e.g. hidden[mask] or hidden.flatten(0, 1)."
        raise InputError("hidden", tuple(hidden.shape), "two dimensions (N, D)", fix)
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1]:
        raise InputError("weight", tuple(weight.shape), f"(V, {hidden.shape[1]})", "Pass lm_head.weight as it is.")
    if not weight.numel():
        raise InputError("weight", tuple(weight.shape), "at least one token and one dimension", "Is it sharded away?")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError("bias", tuple(bias.shape), f"({weight.shape[0]},)", "Pass lm_head.bias as it is.")
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        value = (tuple(targets.shape), targets.dtype)
        raise InputError("targets", value, f"int64 of shape ({hidden.shape[0]},)", "Pass one token id per position.")
    if softcap is not None and not softcap > 0:
        raise InputError("softcap", softcap, "a number above 0, or None", "Pass None for a head without softcap.")
    if targets.device.type == "cpu" and targets.numel() and not torch.compiler.is_compiling():
        low, high = int(targets.min()), int(targets.max())
        known = targets[targets != IGNORE_INDEX]
        if high >= weight.shape[0] or (known.numel() and int(known.min()) < 0):
            expected = f"token ids in [0, {weight.shape[0]}) or {IGNORE_INDEX}"
            raise InputError("targets", f"values from {low} to {high}", expected, "Does the tokenizer fit the model?")


def module_token_stats(
    module: nn.Module,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    positions: int = 512,
) -> TokenStats:
    """`token_stats` through the head's own module, for a head that is more than a weight: adapter, quantised, other.

    Logits of `positions` positions at a time, recomputed in the backward: `module(hidden)` in float32, then
    `log_softmax` and gather. Arguments and results as in `token_stats`.
    """

    def chunk(h: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        z = module(h)
        z = z if z.dtype == torch.float64 else z.float()
        z = z * scale
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        logp = z.log_softmax(1)
        ignored = t == IGNORE_INDEX
        picked = logp.gather(1, t.masked_fill(ignored, 0)[:, None])[:, 0].masked_fill(ignored, 0.0)
        with torch.no_grad():
            entropy, mean = -(logp.exp() * logp).sum(1), z.mean(1)
        return picked, entropy, mean

    parts = [
        checkpoint(chunk, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(positions), targets.split(positions), strict=True)
    ]
    logps, entropy, mean = (torch.cat(x) for x in zip(*parts, strict=True))
    return TokenStats(logps, entropy, mean)
