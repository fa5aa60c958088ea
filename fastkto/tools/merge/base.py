"""The base model, whole, in float32, and the dtype of each tensor in its files."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from fastkto.errors import InputError
from fastkto.training.faults.incomplete import why_not_loaded

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Base(NamedTuple):
    """A model to add to."""

    model: Any
    dtypes: dict[str, torch.dtype | None]
    """Of the tensors in its files."""
    config_dtype: Any
    """The dtype that its config names, where it names one."""
    generation_config: str | None
    """Its file, where it has one."""


def load_base(name: str, **options: Any) -> Base:
    """The model of that folder or Hub id. Raise `InputError` unless its files hold exactly its tensors, as floats."""
    config = AutoConfig.from_pretrained(name, **options)
    if getattr(config, "quantization_config", None) is not None:
        fix = "Name the model that it was made from with --model."
        raise InputError("model", f"{name}, whose weights are quantised", "weights that can be added to", fix)
    dtypes = file_dtypes(name, options["revision"])
    dtype = functools.reduce(torch.promote_types, filter(None, dtypes.values()), torch.float32)
    load = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, **options}
    model: Any
    info: Any
    try:
        model, info = AutoModelForCausalLM.from_pretrained(name, **load)  # type: ignore[misc]
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        raise why_not_loaded(name, error) or error from error
    for keys, expected in (
        ("missing_keys", "files with every tensor of the model; these are not there"),
        ("unexpected_keys", "files with the tensors of the model and no other; these are not its"),
    ):
        if info[keys]:
            fix = "Its config and its weights are of two models: download it again, or name another with --model."
            raise InputError("model", name, f"{expected}: {first_few(info[keys])}", fix)
    generation_config = _find(name, GENERATION_CONFIG_NAME, options["revision"])
    return Base(model, dtypes, getattr(config, "dtype", None), generation_config)


def first_few(names: Any, limit: int = 3) -> str:
    """The first names in order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more


def file_dtypes(name: str, revision: str | None = None) -> dict[str, torch.dtype | None]:
    """Of each tensor in a model's safetensors files, by its name there, the dtype; None where it is not of floats."""
    files = [_find(name, SAFE_WEIGHTS_NAME, revision)]
    if files == [None] and (index := _find(name, SAFE_WEIGHTS_INDEX_NAME, revision)) is not None:
        parts = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
        files = [_find(name, part, revision) for part in sorted(set(parts))]
    dtypes: dict[str, torch.dtype | None] = {}
    for file in filter(None, files):
        with safe_open(file, "pt") as tensors:
            dtypes |= {key: FLOATS.get(tensors.get_slice(key).get_dtype()) for key in tensors.keys()}  # noqa: SIM118
    return dtypes


def _find(name: str, file: str, revision: str | None) -> str | None:
    """The path of a file of the model, where it has it."""
    path: str | None = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return path
