"""The matrix products of a tile of logits and of its gradients, in plain torch."""

import functools

import torch
import torch.nn.functional as F

from fastkto.head.backends.base import HeadInputs

ROWS = {"cpu": 128, "cuda": 512}


def fixed_rows(device: torch.device) -> int:
    """Rows of every product whose rows must not depend on one another."""
    return ROWS.get(device.type, 512)


@functools.cache
def has_onednn() -> bool:
    """Whether torch multiplies through oneDNN here. MKL gives bits that depend on the threads where it is told to be
    `MKL_CBWR=COMPATIBLE`, and half of oneDNN's rate on AMD processors.
    """
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def operand(x: torch.Tensor, head: HeadInputs) -> torch.Tensor:
    """A GEMM operand, rounded to the compute dtype; outside CUDA widened again, exactly, to `sum_dtype`."""
    x = x.to(head.compute_dtype)
    return x if x.device.type == "cuda" else x.to(head.sum_dtype)


def accumulate(
    tile: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    dx: torch.Tensor | None,
    dw: torch.Tensor | None,
    db: torch.Tensor | None,
) -> None:
    """Add a tile of d (hidden W^T + b) to the sums: `dx += tile @ W`, `dw += tile.T @ h`, `db += tile.sum(0)`."""
    if db is not None:
        db += tile.sum(0)
    tile = tile.to(weight.dtype)
    if dx is not None:
        dx += product(tile, weight)
    if dw is not None:
        add_product(dw, tile.T, hidden)


def slice_sum(total: torch.Tensor | None, start: int, end: int, head: HeadInputs) -> torch.Tensor | None:
    """Zeros in `sum_dtype` for rows [start, end) of a gradient: its own memory where the dtype allows."""
    if total is None:
        return None
    part = total[start:end]
    return part.zero_() if part.dtype == head.sum_dtype else torch.zeros_like(part, dtype=head.sum_dtype)


def cast(total: torch.Tensor | None, like: torch.Tensor | None) -> torch.Tensor | None:
    """The sum in the dtype of what it is a gradient of."""
    return None if total is None or like is None else total.to(like.dtype)


def logits_tile(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, head: HeadInputs
) -> torch.Tensor:
    """`softcap(scale * (hidden @ weight.T + bias))` in `sum_dtype`, from operands in the compute dtype."""
    tile = product(hidden, weight.T)
    if bias is not None:
        tile += bias
    if head.scale != 1.0:
        tile *= head.scale
    if head.softcap is not None:
        tile.div_(head.softcap).tanh_().mul_(head.softcap)
    return tile


def logit_slope(z: torch.Tensor, head: HeadInputs) -> torch.Tensor | float:
    """d z / d (hidden W^T + b) as a function of z: `scale * (1 - (z / softcap)**2)`."""
    return head.scale if head.softcap is None else head.scale * (1 - (z / head.softcap) ** 2)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b` of at most `fixed_rows` rows, in float32 (float64 for float64), whatever the operands' dtype.

    Always one shape: rows of zeros fill it up. BLAS libraries sum products of few rows in another order, and a
    position's log-prob must not depend on how many positions are beside it.
    """
    rows = a.shape[0]
    a = F.pad(a, (0, 0, 0, fixed_rows(a.device) - rows)).contiguous()
    if a.dtype == torch.float32 and a.device.type == "cpu" and has_onednn():
        return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")[:rows]
    return matmul(a, b)[:rows]


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b` accumulated and returned in float32 (float64 for float64)."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """`total += a @ b`, a sum over positions, with `total` in float32 or float64."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += matmul(a, b)
