"""A model whose file cannot be loaded, lacks weights, or holds some that its config has no place for."""

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging

from fastkto.errors import InputError

logger = logging.get_logger(__name__)


def check_complete(model: PreTrainedModel, loading: dict[str, Any]) -> None:
    """Raise `InputError` where the file lacks a weight, which would be random, or holds one of a kind that this model
    has and no place for it; what belongs to other models (heads, towers) is said once. Tied weights are not missing."""
    missing = sorted({*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])})
    if missing:
        fix = "They would be random: correct its config (e.g. num_hidden_layers), or download it again."
        raise InputError("model", f"no {_named(missing)} in its file", "a file with every weight of its config", fix)
    own = {re.sub(r"\d+", "#", name) for name, _ in model.named_parameters()}
    modules = {name.rpartition(".")[0] for name in own if name.endswith(".weight")}
    left = sorted(loading["unexpected_keys"])
    kinds = {name: re.sub(r"\d+", "#", name) for name in left}
    misplaced = [name for name, kind in kinds.items() if kind in own or kind.rpartition(".")[0] in modules]
    if misplaced:
        fix = "It would be another model without them: correct its config (e.g. num_hidden_layers, attention_bias)."
        raise InputError("model", f"{_named(misplaced)} in its file", "a config with a place for every weight", fix)
    if left:
        logger.warning(
            f"The file of the model also holds {_named(left)}, for which a causal language model has no use."
        )


def _named(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def why_not_loaded(model: str, error: Exception) -> InputError | None:
    """What transformers and safetensors say of a model that cannot be loaded, where it can be said better."""
    if isinstance(error, SafetensorError):
        return InputError("model", model, f"complete weights, but: {error}", "Download it again.")
    if isinstance(error, RuntimeError) and "mismatch" in str(error):
        fix = "Its config and its weights are of two models: download it again."
        return InputError("model", model, "weights of the shapes that its config names", fix)
    if isinstance(error, OSError) and any(Path(model).glob("pytorch_model*.bin")):
        fix = "A pickle can run code. Convert it with `save_pretrained` if you trust it."
        return InputError("model", model, "weights in safetensors, not in a pickle", fix)
    if "Unrecognized configuration class" in str(error):
        return InputError("model", model, "a causal language model", "Its config is of another kind of model.")
    return None
