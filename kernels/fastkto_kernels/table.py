"""Tile sizes and routes as data, by architecture. No autotuning at run time: one answer for one (D, dtype).

Nothing here depends on the number of positions, so that two calls on the same row give the same bits whatever
else is in the batch. Every figure is a model until `benchmarks/head_gpu.py` has run on that architecture.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Route = Literal["fused", "fold"]


@dataclass(frozen=True)
class Tile:
    """One program's output tile (rows x columns of logits), the depth of a step, and how it is pipelined."""

    rows: int
    columns: int
    depth: int
    stages: int
    warps: int
    programs: int
    """Programs for each multiprocessor of the persistent grid."""


@dataclass(frozen=True)
class Plan:
    """How logits come about. "fused": Triton GEMM with its epilogue. "fold": cuBLAS tile, then one pass over it."""

    route: Route
    tile: Tile
    descriptors: bool
    """Device-side tensor descriptors (TMA) where strides allow; pointers otherwise."""
    split_tiles: int = 8
    """Tiles of a vocabulary split, folded by one program: 8 x 256 columns leave one partial in 2,048 columns."""
    group: int = 16
    """Row tiles that are worked on together: 16 x 128 rows of hidden states (16 MiB at D = 4,096) stay in L2."""
    fold_rows: int = 1024
    """With `fold_columns`: the fp32 tile of the fold route takes 16 MiB, less than half of an H100's L2, and its
    GEMM is 128 tiles of 128 x 256, one wave of 132 multiprocessors."""
    fold_columns: int = 4096

    @property
    def anchor_columns(self) -> int:
        """Columns that share one anchor (running maximum) in a kept tile."""
        return self.tile.columns // 4 if self.route == "fused" else self.fold_columns

    @property
    def split_columns(self) -> int:
        """Columns of one partial."""
        return self.tile.columns * self.split_tiles if self.route == "fused" else self.fold_columns


TILES: dict[str, tuple[tuple[int, Tile], ...]] = {
    # (D below, tile). A100: 164 KiB of shared memory, mma.sync, cp.async: 4 stages of 24 KiB.
    "sm_80": ((1 << 30, Tile(128, 256, 32, stages=4, warps=8, programs=1)),),
    # Ada: 99 KiB, so a square tile: 4 stages of 16 KiB; two warps' halves share each operand.
    "sm_89": ((1 << 30, Tile(128, 128, 32, stages=4, warps=8, programs=1)),),
    # Hopper: wgmma wants 64-deep steps (128-byte swizzle). Under D = 2,048 the epilogue (exp: 16 a clock and
    # multiprocessor) is over 10 % of a tile, so two smaller programs overlap: one's epilogue, the other's GEMM.
    "sm_90": (
        (2048, Tile(128, 128, 64, stages=3, warps=4, programs=2)),
        (1 << 30, Tile(128, 256, 64, stages=3, warps=8, programs=1)),
    ),
    # Blackwell: accumulators live in tensor memory (256 of 512 columns); one more stage hides the longer latency.
    "sm_100": (
        (2048, Tile(128, 128, 64, stages=3, warps=4, programs=2)),
        (1 << 30, Tile(128, 256, 64, stages=4, warps=8, programs=1)),
    ),
    # GeForce Blackwell: 99 KiB and mma.sync, as Ada. Pointers: with descriptors Triton 3.6 keeps two values in local
    # memory inside the MMA's loop.
    "sm_120": ((1 << 30, Tile(128, 128, 32, stages=4, warps=8, programs=1)),),
    # Triton's interpreter: small enough that a test's shapes have tails in every direction.
    "interpreter": ((1 << 30, Tile(16, 16, 16, stages=1, warps=1, programs=1)),),
}

UNALIGNED = Tile(64, 64, 32, stages=2, warps=4, programs=2)
"""Where a row of D elements is no multiple of 16 bytes: 2-byte loads, whose pointers would fill a larger tile's
registers. No model has such a D; the path is there to be right."""

FOLD_FROM: dict[str, int] = {
    # D from which cuBLAS + fold is expected to win (model, not measured). H100: the tile costs 8 bytes a logit of L2
    # and HBM traffic, which is hidden while Triton's GEMM stays over 600 of cuBLAS's 790 TFLOP/s up to D = 2,800.
    "sm_90": 2800,
    # B200: cuBLAS is further ahead of a Triton GEMM without warp specialisation.
    "sm_100": 2048,
}
"""Architectures that are not named never fold 16-bit operands: there a Triton GEMM is level with cuBLAS (model)."""


def architecture(major: int, minor: int) -> str | None:
    """The table's key for a compute capability; None where no entry serves it (below 8.0)."""
    if major < 8:
        return None
    if major == 8:
        return "sm_80" if minor == 0 else "sm_89"
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_120")


def plan_for(arch: str, dtype: torch.dtype, depth: int, route: Route | None = None) -> Plan:
    """The plan of a head with D = `depth`; fp32 and fp64 fold, because their products belong to cuBLAS."""
    tile = next(tile for limit, tile in TILES[arch] if depth < limit)
    if arch != "interpreter" and depth * dtype.itemsize % 16:
        tile = UNALIGNED
    sixteen_bit = dtype in (torch.float16, torch.bfloat16)
    if route is None:
        route = "fused" if sixteen_bit and depth < FOLD_FROM.get(arch, 1 << 30) else "fold"
    if arch == "interpreter":
        return Plan(route, tile, True, split_tiles=2, group=2, fold_rows=8, fold_columns=16)
    return Plan(route, tile, descriptors=arch in ("sm_90", "sm_100"))
