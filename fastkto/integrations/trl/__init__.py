"""fastkto inside TRL: its `KTOTrainer` on the packed micro-step, and its head under every trainer.

In: TRL's own arguments, rows and models, unmodified. Out: TRL's loss, metrics and checkpoints.

    trainer  `KTOTrainer`: TRL's, with five of its methods replaced
    rows     TRL's tokenised rows, which bring their own mismatched completion, into our micro-batches
    head     `patch_trl_head`: our head in place of the function that TRL's trainers share (SFT, DPO, GRPO...)

What trainer and head lean on in TRL is in `integrations/seams/hosts`. `integrations/axolotl` is built on the trainer.
`tests/compat/test_trl*.py` train TRL's and ours side by side, and `docs/trl.md` says what a user changes.
"""

from fastkto.integrations.trl.head import patch_trl_head
from fastkto.integrations.trl.trainer import KTOTrainer

__all__ = ["KTOTrainer", "patch_trl_head"]
