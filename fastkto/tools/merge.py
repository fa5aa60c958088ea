"""A LoRA adapter and its base model as one model that stock transformers loads."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastkto.disk import check_output, written_whole
from fastkto.errors import InputError, require

TEXT = "The quick brown fox jumps over the lazy dog, and 3 of 10 people liked it."
ALLOWED_NATS = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.05}
"""Per token. Float32 re-associates sums; the others also round every weight."""


def merge(
    adapter: Path,
    output: Path,
    *,
    base: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> float:
    """Write the merged model to `output`; the largest difference of a token's log-prob from the adapter's, in nats.

    Computed in float32 whatever the dtypes. Errors: `InputError` for an adapter that is no sum, or a difference that
    rounding does not explain; nothing is written then.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from fastkto.training.loading import model_source

    peft = require("peft", "peft")
    with _readable(adapter):
        config = peft.PeftConfig.from_pretrained(str(adapter))
    name = model_source(base or config.base_model_name_or_path, "model")
    check_output(output, overwrite=overwrite, keep=[adapter, *([Path(name)] if Path(name).is_dir() else [])])
    load = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    weights = AutoModelForCausalLM.from_pretrained(name, revision=None if base else config.revision, **load)
    with _readable(adapter):
        model = peft.PeftModel.from_pretrained(weights, str(adapter)).eval()
    if not hasattr(model.base_model, "merge_and_unload"):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise InputError("ADAPTER_DIR", kind, "an adapter that adds to weights, such as LoRA", "It cannot be merged.")
    tokenizer = _tokenizer(adapter, name, trust_remote_code)
    tokens = torch.tensor([tokenizer(TEXT)["input_ids"]])
    expected = _token_logps(model, tokens)
    _untie(model)
    merged = model.merge_and_unload(safe_merge=True).to(getattr(torch, dtype))
    with written_whole(output) as folder:
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del weights, model, merged  # two copies of a large model need not be held at once
        saved = AutoModelForCausalLM.from_pretrained(folder, **load).eval()
        difference = (_token_logps(saved, tokens) - expected).abs().max().item()
        if not difference <= ALLOWED_NATS[dtype]:
            found = f"log-probs {difference:.1e} nats per token away from the adapter's"
            fix = "Is this the base model that the adapter was trained on? Try --dtype float32."
            raise InputError("ADAPTER_DIR", found, f"at most {ALLOWED_NATS[dtype]:g}", fix)
    return difference


@contextlib.contextmanager
def _readable(adapter: Path) -> Iterator[None]:
    """Turn what peft raises for settings that it does not know, e.g. a KeyError of the type, into `InputError`."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        fix = f"peft says: {type(error).__name__}: {error}. Was it written by a newer peft?"
        raise InputError("ADAPTER_DIR", str(adapter), "an adapter_config.json that this peft can read", fix) from error


def _tokenizer(adapter: Path, base: str, trust_remote_code: bool) -> Any:
    """The tokenizer saved with the adapter, whose chat template may be its own, or else the base model's."""
    from transformers import AutoTokenizer

    own = (adapter / "tokenizer_config.json").is_file()
    return AutoTokenizer.from_pretrained(str(adapter) if own else base, trust_remote_code=trust_remote_code)


def _untie(model: Any) -> None:
    """Give the head its own weight where head or embedding is adapted: what is added to one is not for the other."""
    from torch import nn

    base = model.get_base_model()
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    adapted = any(type(module).__module__.startswith("peft.") for module in (head, embedding))
    if not (base.config.tie_word_embeddings and adapted):
        return
    inner = getattr(head, "base_layer", getattr(head, "original_module", head))
    inner.weight = nn.Parameter(inner.weight.detach().clone())
    base.config.tie_word_embeddings = False


def _token_logps(model: Any, tokens: Any) -> Any:
    import torch

    with torch.no_grad():
        logits = model(input_ids=tokens).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
