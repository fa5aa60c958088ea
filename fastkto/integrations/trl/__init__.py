"""fastkto inside TRL: its `KTOTrainer` on the packed micro-step, and its head under every trainer.

In: TRL's own arguments, rows and models, unmodified. Out: TRL's loss, metrics and checkpoints.

    trainer  `KTOTrainer`: TRL's, with five of its methods replaced (`SEAMS`); the versions that it knows
    rows     TRL's tokenised rows, which bring their own mismatched completion, into our micro-batches
    head     `patch_trl_head`: our head in place of the function that TRL's trainers share (SFT, DPO, GRPO...)

It is the base of `integrations/axolotl` too. `tests/compat/test_trl*.py` train both trainers side by side, and
`docs/trl.md` says what a user changes.
"""

from fastkto.integrations.trl.head import patch_trl_head
from fastkto.integrations.trl.trainer import KTOTrainer

__all__ = ["KTOTrainer", "patch_trl_head"]
