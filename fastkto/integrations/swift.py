"""ms-swift: `--external_plugins plugin.py`, a file of one line, `import fastkto.integrations.swift`.

`swift rlhf --rlhf_type kto` then scores through fastkto's head. The host's data, templates, reference, loss, metrics
and checkpoints stay as they are; the logits never exist.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from fastkto.errors import InputError
from fastkto.integrations.padded import padded_scorer
from fastkto.integrations.seams import require_seams
from fastkto.trunk.modules import Head
from fastkto.trunk.scorer import Scorer, teach_scorer

_NAME = "fastkto.integrations.swift"

require_seams("ms-swift")

from swift.rlhf_trainers.kto_trainer import KTOTrainer as HostTrainer  # noqa: E402 - not before its seams are known
from swift.trainers import TrainerFactory  # noqa: E402


class KTOTrainer(HostTrainer):
    """The host's trainer with fastkto's head under the policy, the reference and both of their KL forwards."""

    def __init__(self, model: Any = None, ref_model: Any = None, *args: Any, **kwargs: Any) -> None:
        if kwargs["template"].sequence_parallel_size > 1:
            fix = "Set sequence_parallel_size to 1, or train without fastkto."
            raise InputError("sequence_parallel_size", kwargs["template"].sequence_parallel_size, "1", fix)
        for each in (model, ref_model):
            if each is not None:
                teach_scorer(each)
        super().__init__(model, ref_model, *args, **kwargs)

    def get_use_logits_to_keep(self, default_value: bool = True) -> bool:
        """Never: the scorer leaves out the positions that are not labelled."""
        return False

    def _get_model_kwargs(self, inputs: dict[str, Any], prefix: str) -> tuple[dict[str, Any], torch.Tensor]:
        arguments, labels = super()._get_model_kwargs(inputs, prefix)
        padded = padded_scorer(labels)

        def score(hidden: torch.Tensor, head: Head, aux_loss: torch.Tensor | None) -> SimpleNamespace:
            """What the host takes for logits: (B, L, 2), log-prob of the next label and sum of the logits."""
            scores = padded.score(hidden, head, aux_loss)
            logits = torch.stack([F.pad(scores.logps, (0, 1)), scores.logit_sums.to(scores.logps.dtype)], dim=-1)
            return SimpleNamespace(logits=logits, aux_loss=aux_loss)

        return arguments | {"scorer": Scorer(score)}, labels

    def get_per_token_logps(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        label_pad_token_id: int = -100,
        reduction: str = "mean",
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probs (B, L) and sums of logits (B, L), 0 where not labelled, and the mask."""
        assert logits.shape == (*labels.shape, 2)
        assert reduction == "sum"
        mask = labels != label_pad_token_id
        logps, sums = logits.unbind(-1)
        return logps * mask, sums * mask, mask


TrainerFactory.TRAINER_MAPPING["kto"] = f"{_NAME}.KTOTrainer"
