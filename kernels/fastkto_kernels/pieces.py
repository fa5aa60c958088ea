# mypy: allow-untyped-defs, allow-incomplete-defs
"""Pieces that the kernels share: the GEMM loop, bias, scale and softcap, and the order of the tiles.

Legend: N positions, D hidden, V vocabulary. Arguments are device values; upper case is known at compile time.
"""

import triton
import triton.language as tl


@triton.jit
def grouped(unit, row_tiles, columns, GROUP: tl.constexpr):
    """(row tile, column) of a unit of work: GROUP row tiles share each slice of the weight while it is in L2."""
    per_group = GROUP * columns
    first = unit // per_group * GROUP
    size = tl.minimum(row_tiles - first, GROUP)
    inside = unit % per_group
    return first + inside % size, inside // size


@triton.jit
def matrix(pointer, count, D, stride, ROWS: tl.constexpr, DEPTH: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """A row-major (count, D) matrix to load [ROWS, DEPTH] tiles from: a tensor descriptor, or its pointer."""
    if DESCRIPTORS:
        return tl.make_tensor_descriptor(pointer, [count, D], [stride, 1], [ROWS, DEPTH])
    else:  # noqa: RET505 - only the branch that is taken exists for the compiler, and the types differ
        return pointer


@triton.jit
def row_pointers(pointer, first, count, stride, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """Pointers to [ROWS, DEPTH] from row `first`, in 64 bits; rows past the end point at the last one."""
    rows = tl.minimum(first + tl.arange(0, ROWS), count - 1).to(tl.int64)
    return pointer + rows[:, None] * stride + tl.arange(0, DEPTH)[None, :]


@triton.jit
def product(
    hidden,
    weight,
    row,
    column,
    N,
    V,
    D,
    hidden_stride,
    weight_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """`hidden[row:row + ROWS] @ weight[column:column + COLUMNS].T`, accumulated in float32."""
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    if DESCRIPTORS:
        for depth in range(0, D, DEPTH):
            a = hidden.load([row, depth])
            b = weight.load([column, depth])
            if WIDEN:
                a, b = a.to(tl.float32), b.to(tl.float32)
            total = tl.dot(a, b.T, total, input_precision="ieee")
    else:
        a_pointers = row_pointers(hidden, row, N, hidden_stride, ROWS, DEPTH)
        b_pointers = row_pointers(weight, column, V, weight_stride, COLUMNS, DEPTH)
        for depth in range(0, D, DEPTH):
            inside = (tl.arange(0, DEPTH) < D - depth)[None, :]
            a = tl.load(a_pointers, mask=inside, other=0.0)
            b = tl.load(b_pointers, mask=inside, other=0.0)
            if WIDEN:
                a, b = a.to(tl.float32), b.to(tl.float32)
            total = tl.dot(a, b.T, total, input_precision="ieee")
            a_pointers += DEPTH
            b_pointers += DEPTH
    return total


@triton.jit
def finish_logits(x, bias, columns, V, SCALE: tl.constexpr, SOFTCAP: tl.constexpr):
    """`softcap * tanh(scale * (x + bias) / softcap)`; `bias` and SOFTCAP may be None. `columns` are the last axis."""
    if bias is not None:
        b = tl.load(bias + columns, mask=columns < V, other=0.0).to(x.dtype)
        x += tl.broadcast_to(b, x.shape)
    if SCALE != 1.0:
        x *= SCALE
    if SOFTCAP is not None:
        x = SOFTCAP * tanh(x / SOFTCAP)
    return x


@triton.jit
def tanh(x):
    """Hyperbolic tangent to a few units in the last place; in float32 also near 0, where 1 - exp(-2x) cancels."""
    decay = tl.exp(-2.0 * tl.abs(x))
    magnitude = (1.0 - decay) / (1.0 + decay)
    result = tl.where(x < 0, -magnitude, magnitude)
    if x.dtype == tl.float32:  # Taylor to x**9: relative error 1e-8 at 1/4
        square = x * x
        series = square * (square * (square * (square * (62 / 2835) - 17 / 315) + 2 / 15) - 1 / 3)
        result = tl.where(tl.abs(x) < 0.25, x + x * series, result)
    return result


@triton.jit
def slope(z, SCALE: tl.constexpr, SOFTCAP: tl.constexpr):
    """d z / d (hidden W^T + bias) as a function of z: `scale * (1 - (z / softcap)**2)`."""
    if SOFTCAP is not None:
        share = z / SOFTCAP
        result = SCALE * (1.0 - share * share)
    else:
        result = tl.full(z.shape, SCALE, z.dtype)
    return result


@triton.jit
def above_minus_infinity(x):
    """x, or 0 where x is -inf: what an exponential may be taken relative to."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def halves(x):
    """(left half, right half) of the columns of a tile, each still spread over the same threads."""
    return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def quarters(x):
    """The columns of a tile in four parts. An epilogue on a part at a time needs a quarter of the registers."""
    left, right = halves(x)
    a, b = halves(left)
    c, d = halves(right)
    return a, b, c, d
