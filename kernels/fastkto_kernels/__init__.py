"""Triton kernels for KTO: the LM head with its log-probs and their gradients, and the loss, without logits in memory.

Needs torch and triton. Legend: N scored positions, D hidden, V vocabulary, B rows.
"""

from .combine import Kept, Outputs
from .head import (
    CHUNK_BYTES,
    FORWARD_BYTES,
    FROZEN_BYTES,
    Gradients,
    backward,
    backward_into,
    block_backward,
    block_forward,
    forward,
    kept_positions,
)
from .inputs import Head
from .kto import RowSums, Terms, kto_terms, row_sums
from .launch import arch_of
from .table import Plan, Tile, plan_for

__all__ = [
    "CHUNK_BYTES",
    "FORWARD_BYTES",
    "FROZEN_BYTES",
    "Gradients",
    "Head",
    "Kept",
    "Outputs",
    "Plan",
    "RowSums",
    "Terms",
    "Tile",
    "arch_of",
    "backward",
    "backward_into",
    "block_backward",
    "block_forward",
    "forward",
    "kept_positions",
    "kto_terms",
    "plan_for",
    "row_sums",
]
