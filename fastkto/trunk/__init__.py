"""A stock model on a packed batch: hidden states where tokens are scored, KL rows without a graph."""

from fastkto.trunk.run import ModelRun, run_batch

__all__ = ["ModelRun", "run_batch"]
