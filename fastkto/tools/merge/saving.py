"""The merged model on disk: each tensor in the dtype that the base has it in, its generation config the base's own."""

import functools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from fastkto.tools.merge.base import Base, file_dtypes


class Written(NamedTuple):
    """What is in the files."""

    dtypes: set[torch.dtype]
    left_out: set[str]
    """Tensors of the base's files that transformers does not load."""


def save(merged: Any, folder: Path, base: Base, dtype: torch.dtype | None) -> Written:
    """Write the model. `dtype`: of all tensors; None: of each the base's, and of a new one the base's usual."""
    dtypes = {name: x for name, x in base.dtypes.items() if x is not None}
    merged.to(dtype or functools.reduce(torch.promote_types, dtypes.values()))
    if base.generation_config is not None:
        merged.generation_config = GenerationConfig()  # the base's may be one that transformers refuses to save
    merged.save_pretrained(folder, max_shard_size="5GB")
    if base.generation_config is not None:
        shutil.copyfile(base.generation_config, folder / GENERATION_CONFIG_NAME)
    if (dtype or base.config_dtype) is not None:
        merged.config.dtype = dtype or base.config_dtype
        merged.config.save_pretrained(folder)
    if dtype is None and len(set(dtypes.values())) > 1:
        _round(folder, dtypes)
    written = file_dtypes(str(folder))
    tied = getattr(merged, "all_tied_weights_keys", None) or {}
    return Written({x for x in written.values() if x is not None}, base.dtypes.keys() - written.keys() - tied.keys())


def _round(folder: Path, dtypes: dict[str, torch.dtype]) -> None:
    """Give each tensor in the files its own dtype."""
    usual = Counter(dtypes.values()).most_common(1)[0][0]
    size = 0
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        own = {name: x.to(dtypes.get(name, usual)) if x.is_floating_point() else x for name, x in tensors.items()}
        save_file(own, file, metadata={"format": "pt"})
        size += sum(x.nbytes for x in own.values())
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["metadata"]["total_size"] = size
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
