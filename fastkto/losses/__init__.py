"""Losses on log-probs: pure functions, one file an idea."""

from fastkto.losses.kto import KTOLoss, kto_loss

__all__ = ["KTOLoss", "kto_loss"]
