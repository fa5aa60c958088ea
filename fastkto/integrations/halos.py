"""HALOs: `import fastkto.integrations.halos` at the top of its `launch.py` replaces `train.trainers.KTOTrainer`.

Run from a checkout of HALOs, which is no package. Its data, loss, humanline, metrics and checkpoints stay as they are.
"""

from typing import Any

import torch

from fastkto.errors import InputError
from fastkto.integrations.padded import padded_scorer
from fastkto.integrations.seams import require_seams
from fastkto.trunk.scorer import teach_scorer

require_seams("halos")

from train import trainers  # noqa: E402 - not before its seams are known


class KTOTrainer(trainers.KTOTrainer):
    """The host's trainer with fastkto's head under the policy, the reference and both of their KL forwards.

    Raises:
        ValueError: `cache_reference_logprobs`, whose cache does not hold the pairs that the host asks it for.
    """

    def prepare_accelerator(self) -> None:
        """As the host does, on models that know a scorer."""
        if self.config.cache_reference_logprobs:  # a KeyError in the host's first step
            expected = "false: HALOs shuffles the rows anew after caching, and so forms other mismatched pairs"
            raise InputError("cache_reference_logprobs", True, expected, "Leave it out.")
        teach_scorer(self.policy)
        teach_scorer(self.reference_model)
        super().prepare_accelerator()

    def forward(
        self, model: Any, batch: dict[str, Any], use_cache: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Per-token log-probs (rows, L - 1) of the desirable rows, the undesirable ones and the mismatched pairs."""
        assert not use_cache

        def logps(stream: str) -> torch.Tensor:
            ids, mask = batch[f"{stream}_combined_input_ids"], batch[f"{stream}_combined_attention_mask"]
            scores = model(ids, attention_mask=mask, scorer=padded_scorer(batch[f"{stream}_labels"]))
            result: torch.Tensor = scores.logps
            return result

        with self.accelerator.autocast():
            with torch.no_grad():
                kl_logps = logps("KL")
            target_logps = logps("target")
        rows = {
            status: [i for i, each in enumerate(batch["status"]) if each == status] for status in ("chosen", "rejected")
        }
        return target_logps[rows["chosen"]], target_logps[rows["rejected"]], kl_logps


trainers.KTOTrainer = KTOTrainer
