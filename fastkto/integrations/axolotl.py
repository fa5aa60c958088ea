"""Axolotl: `trainer_cls: fastkto.integrations.axolotl.KTOTrainer`, one line in the YAML of a run with `rl: kto`.

The host's data, schedulers, optimizers and resuming stay as they are; the micro-step inside is fastkto's.
"""

from typing import Any

from fastkto.errors import InputError
from fastkto.integrations.seams import require_seams

require_seams("axolotl")

from axolotl.core.trainers.trl import AxolotlKTOTrainer  # noqa: E402 - not before its seams are known

from fastkto.integrations.trl import KTOTrainer as PackedKTOTrainer  # noqa: E402


class KTOTrainer(AxolotlKTOTrainer, PackedKTOTrainer):
    """The host's own class, with `fastkto.integrations.trl.KTOTrainer` in the place of TRL's trainer under it.

    Raises:
        ValueError: `context_parallel_size` above 1, and what `fastkto.integrations.trl.KTOTrainer` refuses.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and parallelism.cp_size > 1:  # its hooks cut padded rows, and ours are packed
            fix = "Set context_parallel_size to 1, or leave trainer_cls out."
            raise InputError("context_parallel_size", parallelism.cp_size, "1", fix)
