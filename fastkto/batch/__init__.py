"""One micro-batch: the targets and the mismatched pairs of the KL term, in one sequence or padded, and its layout."""

from fastkto.batch.layout import Layout
from fastkto.batch.packed import PackingCollator
from fastkto.batch.padded import PaddingCollator

__all__ = ["Layout", "PackingCollator", "PaddingCollator"]
