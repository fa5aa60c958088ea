"""LLaMA-Factory: `import fastkto.integrations.llamafactory`, or `python -m fastkto.integrations.llamafactory
config.yaml` in place of `llamafactory-cli train config.yaml`. Its KTO then scores through fastkto's head.

The host's data, sampler, reference model, loss, metrics and checkpoints stay as they are; the logits never exist.
"""

from typing import Any

import torch

from fastkto.errors import InputError
from fastkto.head.logprobs import IGNORE_INDEX
from fastkto.integrations.padded import padded_scorer
from fastkto.integrations.seams import require_seams
from fastkto.trunk.scorer import teach_scorer

_TEXT = ("input_ids", "attention_mask", "labels", "token_type_ids", "position_ids")

require_seams("llamafactory")

from llamafactory.train.kto import workflow  # noqa: E402 - not before its seams are known
from llamafactory.train.kto.trainer import CustomKTOTrainer  # noqa: E402


class KTOTrainer(CustomKTOTrainer):
    """The host's trainer with fastkto's head under the policy, the reference and both of their KL forwards."""

    def __init__(self, model: Any, ref_model: Any, *args: Any, **kwargs: Any) -> None:
        for each in (model, ref_model):
            if each is not None:
                teach_scorer(each)
        super().__init__(model, ref_model, *args, **kwargs)

    def forward(
        self, model: Any, batch: dict[str, torch.Tensor], prefix: str = ""
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, L) sums of logits, which the host sums further for its metrics; (B,) log-probs; their token means."""
        _refuse_media(batch)
        labels = batch[f"{prefix}labels"]
        inputs = {name: batch[prefix + name] for name in _TEXT if name != "labels" and prefix + name in batch}
        scores = model(**inputs, scorer=padded_scorer(labels))
        logps = scores.logps.sum(-1)
        return scores.logit_sums, logps, logps / (labels[:, 1:] != IGNORE_INDEX).sum(-1)


def _refuse_media(batch: dict[str, Any]) -> None:
    known = {*_TEXT, "kto_tags", *(f"kl_{name}" for name in _TEXT)}
    unknown = sorted(name for name, value in batch.items() if name not in known and value is not None)
    if unknown:
        raise InputError("batch", unknown, "text: input ids, masks and labels", "Train this model without fastkto.")


workflow.CustomKTOTrainer = KTOTrainer

if __name__ == "__main__":
    from llamafactory.train.tuner import run_exp

    run_exp()
