"""The head's forward and backward as custom ops: `torch.compile` takes each as one step, without a graph break.

A backend is passed by name. Absent results are empty tensors, because an op returns tensors only. W frozen: d logp /
d hidden is formed in the forward (4 NDV in all). W trained: the backward recomputes (8 NDV).
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from fastkto.head.backends import BACKENDS
from fastkto.head.backends.base import HeadInputs, HeadOutputs, Wanted


def run_forward(backend: str, head: HeadInputs, wanted: Wanted, *, stats: bool) -> HeadOutputs:
    """`BACKENDS[backend].forward(head, stats=stats, ...)` as one op; `logps_N` carries the wanted gradients."""
    unit_dx = wanted.hidden and not (wanted.weight or wanted.bias)
    tensors = head.hidden_ND, head.weight_VD, head.targets_N, head.bias_V
    out = _forward(backend, *tensors, head.softcap, head.scale, head.compute_dtype, stats, unit_dx)
    return HeadOutputs(out[0], out[1], out[2] if stats else None, out[3] if stats else None, None)


@torch.library.custom_op("fastkto::head_forward", mutates_args=())
def _forward(
    backend: str,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    softcap: float | None,
    scale: float,
    compute_dtype: torch.dtype,
    stats: bool,
    unit_dx: bool,
) -> list[torch.Tensor]:
    head = HeadInputs(hidden, weight, targets, bias, softcap, scale, compute_dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        out = BACKENDS[backend].forward(head, stats=stats, unit_dx=unit_dx)
    return [hidden.new_empty(0) if x is None else x for x in out]


@_forward.register_fake
def _(backend, hidden, weight, targets, bias, softcap, scale, compute_dtype, stats, unit_dx):  # type: ignore[no-untyped-def]
    sums = HeadInputs(hidden, weight, targets, bias, softcap, scale, compute_dtype).sum_dtype
    found = [hidden.new_empty(hidden.shape[0], dtype=sums) for _ in range(4 if stats else 2)]
    nothing = [] if stats else [hidden.new_empty(0) for _ in range(2)]
    return [*found, *nothing, torch.empty_like(hidden) if unit_dx else hidden.new_empty(0)]


@torch.library.custom_op("fastkto::head_backward", mutates_args=())
def _backward(
    backend: str,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    softcap: float | None,
    scale: float,
    compute_dtype: torch.dtype,
    lse: torch.Tensor,
    grad: torch.Tensor,
    want_hidden: bool,
    want_weight: bool,
    want_bias: bool,
) -> list[torch.Tensor]:
    head = HeadInputs(hidden, weight, targets, bias, softcap, scale, compute_dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        found = BACKENDS[backend].backward(head, lse, grad, Wanted(want_hidden, want_weight, want_bias))
    return [hidden.new_empty(0) if x is None else x for x in found]


@_backward.register_fake
def _(  # type: ignore[no-untyped-def]
    backend,
    hidden,
    weight,
    targets,
    bias,
    softcap,
    scale,
    compute_dtype,
    lse,
    grad,
    want_hidden,
    want_weight,
    want_bias,
):
    wanted = zip((hidden, weight, bias), (want_hidden, want_weight, want_bias), strict=True)
    return [torch.empty_like(x) if want else hidden.new_empty(0) for x, want in wanted]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    """What the backward needs, and that only log-probs carry a gradient."""
    backend, hidden, weight, targets, bias, softcap, scale, compute_dtype, _, ctx.unit_dx = inputs
    _, lse, *_, unit_dx = output
    ctx.backend, ctx.settings = backend, (softcap, scale, compute_dtype)
    ctx.save_for_backward(*((unit_dx,) if ctx.unit_dx else (hidden, weight, targets, bias, lse)))
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])


@once_differentiable
def _gradients(ctx: Any, grads: list[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
    grad_N, rest = grads[0], (None,) * 5
    if grad_N is None:
        return (None,) * 10
    if ctx.unit_dx:
        (unit_dx_ND,) = ctx.saved_tensors
        return None, (grad_N[:, None] * unit_dx_ND).to(unit_dx_ND.dtype), None, None, None, *rest
    *tensors, lse_N = ctx.saved_tensors
    _, hidden, weight, _, bias, *_ = ctx.needs_input_grad
    wanted = hidden, weight, bias
    found = _backward(ctx.backend, *tensors, *ctx.settings, lse_N, grad_N, *wanted)
    dx, dw, db = (x if want else None for want, x in zip(wanted, found, strict=True))
    return None, dx, dw, None, db, *rest


_forward.register_autograd(_gradients, setup_context=_keep)
