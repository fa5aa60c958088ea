"""An adapter and its base model as one model that stock transformers loads."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastkto.disk import check_output, written_whole
from fastkto.errors import InputError
from fastkto.tools.merge.adapter import find_adapter, put_on, read_config, trained_tokens
from fastkto.tools.merge.base import load_base
from fastkto.tools.merge.saving import save
from fastkto.tools.merge.texts import token_logps, token_rows
from fastkto.tools.merge.ties import tie_again, untie
from fastkto.training.loading import model_source
from fastkto.trunk.modules import first_non_finite

ALLOWED_NATS = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.5}
"""Per token, the narrowest last. Float32 re-associates sums; the narrower ones also round every weight."""


class Merged(NamedTuple):
    """What was written, and how near it is to base and adapter."""

    adapter: Path
    tokenizer: str
    """The folder or Hub id that it is from."""
    dtypes: list[str]
    left_out: list[str]
    """Tensors of the base's files that transformers does not load."""
    tokens: int
    gap: float
    """The largest difference of a token's log-prob from base and adapter's, in nats."""
    allowed: float
    effect: float | None
    """The largest difference of base and adapter's from the base's; None where the adapter resized the vocabulary."""


def merge(
    adapter: Path,
    output: Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> Merged:
    """Write the merged model to `output`, each tensor in the base's dtype, or all in `dtype`.

    Added up in float32 and rounded once. Errors: `InputError` for a tensor of either side that is missing or has no
    place, an adapter that is no sum, or a difference that rounding does not explain; nothing is written then.
    """
    folder = find_adapter(adapter)
    config = read_config(folder)
    name = model_source(base or config.base_model_name_or_path, "model")
    check_output(output, overwrite=overwrite, keep=[adapter, *([Path(name)] if Path(name).is_dir() else [])])
    options = {"revision": None if base else config.revision, "trust_remote_code": trust_remote_code}
    start = load_base(name, **options)
    tokenizer = _tokenizer(folder, name, options)
    rows = token_rows(tokenizer, trained_tokens(config))
    vocabulary = _vocabulary(start.model)
    plain = token_logps(start.model, rows) if max(map(max, rows)) < vocabulary else None
    model = put_on(start.model, folder, config)
    if max(tokenizer.get_vocab().values()) >= _vocabulary(model):
        fix = "Save the adapter with save_embedding_layers=True, from the model whose vocabulary was resized."
        found, expected = f"a tokenizer of {len(tokenizer)} tokens", f"at most the model's {_vocabulary(model)}"
        raise InputError("ADAPTER_DIR", found, expected, fix)
    wanted = token_logps(model, rows)
    merged = _sum(model)
    _check(token_logps(merged, rows), wanted, torch.float32, "As peft adds it up it is another model: serve it apart.")
    with written_whole(output) as scratch:
        written = save(merged, scratch, start, getattr(torch, dtype) if dtype else None)
        tokenizer.save_pretrained(scratch)
        resized = _vocabulary(merged) != vocabulary
        del start, model, merged  # two copies of a large model need not be held at once
        load = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
        saved = AutoModelForCausalLM.from_pretrained(scratch, **load).eval()
        narrowest = max(written.dtypes, key=list(ALLOWED_NATS).index)
        gap = _check(token_logps(saved, rows), wanted, narrowest, "Rounding does that: try --dtype float32.")
    effect = None if plain is None or resized else (wanted - plain).abs().max().item()
    dtypes = sorted(str(x).removeprefix("torch.") for x in written.dtypes)
    compared = (len(wanted), gap, ALLOWED_NATS[narrowest], effect)
    return Merged(folder, tokenizer.name_or_path, dtypes, sorted(written.left_out), *compared)


def _tokenizer(adapter: Path, base: str, options: dict[str, Any]) -> Any:
    """The tokenizer saved with the adapter or in the folder above it, where peft puts a named one; else the base's."""
    own = [str(folder) for folder in (adapter, adapter.parent) if (folder / "tokenizer_config.json").is_file()]
    if own:
        return AutoTokenizer.from_pretrained(own[0], trust_remote_code=options["trust_remote_code"])
    return AutoTokenizer.from_pretrained(base, **options)


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _sum(model: Any) -> Any:
    """Base and adapter added up, in place; every number of it finite."""
    kind = model.active_peft_config.peft_type.value
    untied = untie(model)
    try:
        merged = model.merge_and_unload()
    except (ValueError, RuntimeError) as error:
        expected = f"an adapter that can be merged, but: {str(error).rstrip('.')}"
        raise InputError("ADAPTER_DIR", kind, expected, "Serve it as an adapter.") from error
    if untied:
        tie_again(merged)
    name = first_non_finite(merged)
    if name is not None:
        fix = "The adapter is broken, or its file has not all rows of a vocabulary that was resized."
        raise InputError("ADAPTER_DIR", f"NaN or inf in {name}", "finite weights", fix)
    return merged


def _check(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, fix: str) -> float:
    """The largest difference in nats, where it is allowed."""
    gap = (found - wanted).abs().max().item()
    if not gap <= ALLOWED_NATS[dtype]:
        wrong = f"log-probs {gap:.1e} nats per token away from the adapter's"
        raise InputError("ADAPTER_DIR", wrong, f"at most {ALLOWED_NATS[dtype]:g}", fix)
    return gap
