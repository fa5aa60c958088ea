"""The head's forward and backward as custom ops: `torch.compile` takes each as one step, without a graph break.

A backend is passed by name. Absent results are empty tensors, because an op returns tensors only.
"""

import torch

from fastkto.head.backends import BACKENDS
from fastkto.head.backends.base import HeadGradients, HeadInputs, HeadOutputs, Wanted


def run_forward(backend: str, head: HeadInputs, *, stats: bool, unit_dx: bool) -> HeadOutputs:
    """`BACKENDS[backend].forward(head, stats=stats, unit_dx=unit_dx)`, as one op."""
    out = _forward(backend, *_flat(head), stats, unit_dx)
    return HeadOutputs(
        out[0], out[1], out[2] if stats else None, out[3] if stats else None, out[4] if unit_dx else None
    )


def run_backward(
    backend: str, head: HeadInputs, lse_N: torch.Tensor, grad_N: torch.Tensor, wanted: Wanted
) -> HeadGradients:
    """`BACKENDS[backend].backward(head, lse_N, grad_N, wanted)`, as one op."""
    found = _backward(backend, *_flat(head), lse_N, grad_N, *wanted)
    return HeadGradients(*(x if want else None for want, x in zip(wanted, found, strict=True)))


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


def _flat(head: HeadInputs) -> tuple:
    return (
        head.hidden_ND,
        head.weight_VD,
        head.targets_N,
        head.bias_V,
        head.softcap,
        head.scale,
        head.compute_dtype,
    )
