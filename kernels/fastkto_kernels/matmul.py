"""Plain GEMMs with sums and results in float32 (float64 for float64), whatever the operands' dtype."""

import torch

from .inputs import Head, slabs, slices

ROUND_BYTES = 32 << 20
"""Of float32 sums at once, where a product is rounded to 16 bits."""


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of logits, statistics and gradient sums for operands of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b`."""
    out = a.new_empty(a.shape[0], b.shape[1], dtype=sum_dtype(a.dtype))
    matmul_into(out, a, b, accumulate=False)
    return out


def matmul_into(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, accumulate: bool) -> None:
    """`out = a @ b`, or `out += a @ b`, with no second copy of `out`."""
    if a.dtype != out.dtype and a.device.type != "cuda":
        a, b = a.to(out.dtype), b.to(out.dtype)  # only CUDA multiplies 16-bit operands into float32
    if a.dtype == out.dtype:
        if accumulate:
            out.addmm_(a, b)
        else:
            torch.mm(a, b, out=out)
    elif accumulate:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def times_weight(unit: torch.Tensor, head: Head) -> torch.Tensor:
    """`unit @ weight` in the sums' dtype, the weight cast slab by slab where it has to be."""
    total = unit.new_empty(unit.shape[0], head.weight.shape[1], dtype=sum_dtype(unit.dtype))
    for first, slab, _ in slabs(head, 1):
        matmul_into(total, unit[:, first : first + slab.shape[0]], slab, accumulate=first > 0)
    return total


def write_product(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, factor: torch.Tensor | None, *, accumulate: bool
) -> None:
    """`out = a @ b * factor` or `out += ...`, summed in float32; a 16-bit or scaled product is made slab by slab."""
    if factor is None and out.dtype == sum_dtype(a.dtype):
        matmul_into(out, a, b, accumulate=accumulate)
        return
    step = max(1, ROUND_BYTES // (4 * b.shape[1]))
    for rows in slices(out.shape[0], step):
        total = matmul(a[rows], b)
        if factor is not None:
            total.mul_(factor)
        out[rows] = out[rows] + total if accumulate else total


def in_range(grad: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`grad`, and for float16 operands its largest size, taken out of it: KTO's are near the least that float16 has."""
    if dtype != torch.float16 or not grad.numel():
        return grad, None
    largest = grad.abs().amax().clamp_min(torch.finfo(grad.dtype).tiny)
    return grad / largest, largest
