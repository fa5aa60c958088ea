"""fastkto inside TRL: its `KTOTrainer` on the packed micro-step, and its head under every trainer."""

from fastkto.integrations.trl.head import patch_trl_head
from fastkto.integrations.trl.trainer import KTOTrainer

__all__ = ["KTOTrainer", "patch_trl_head"]
