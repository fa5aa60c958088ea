"""The adapter on its base as peft loads it, and every tensor of its file held against the model's."""

import warnings
from pathlib import Path
from typing import Any

import torch

from fastkto.errors import InputError, require
from fastkto.tools.merge.base import first_few

AT_RANDOM = ("pissa_niter", "corda", "loftq", "lora_ga")
"""Ways to start a LoRA that rewrite the base in a manner that cannot be repeated from its weights alone."""
INNER = ("", ".base_layer", ".token_adapter.base_layer")
"""Where peft keeps the weight of an embedding that it wraps."""


def find_adapter(folder: Path) -> Path:
    """The folder itself, or the one in it that holds an adapter of another name than peft's default."""
    if (folder / "adapter_config.json").is_file():
        if not any((folder / f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin")):
            fix = "Copy the whole folder, or name a checkpoint that was saved whole."
            raise InputError("ADAPTER_DIR", str(folder), "a folder with adapter_model.safetensors", fix)
        return folder
    named = sorted(path.parent for path in folder.glob("*/adapter_config.json"))
    if len(named) == 1:
        return find_adapter(named[0])
    found = f"{folder} with the adapters {first_few(path.name for path in named)}" if named else str(folder)
    fix = "Name one of them." if named else "Name the output or a checkpoint of a training run with use_peft."
    raise InputError("ADAPTER_DIR", found, "a folder with adapter_config.json", fix)


def read_config(folder: Path) -> Any:
    """The adapter's config, unless it is of a kind that is no sum with weights, or no longer the sum that it was."""
    peft = require("peft", "peft")
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        fix = f"{type(error).__name__}: {error}. Is it whole, and of no newer peft?"
        raise InputError("ADAPTER_DIR", str(folder), f"an adapter that peft {peft.__version__} knows", fix) from error
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.startswith(AT_RANDOM):
        fix = "Save it in the run that trains it with path_initial_model_for_weight_conversion: that is a plain LoRA."
        expected = "a LoRA on the base as it is; this start rewrote the base, and peft cannot repeat it"
        raise InputError("ADAPTER_DIR", f"init_lora_weights={start!r}", expected, fix)
    return config


def trained_tokens(config: Any) -> list[int]:
    """The tokens that the adapter trains one by one."""
    tokens = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    return sorted({x for part in tokens.values() for x in part} if isinstance(tokens, dict) else tokens)


def put_on(model: Any, folder: Path, config: Any) -> Any:
    """peft's model of base and adapter. Raise `InputError` unless it uses the whole file and lacks nothing."""
    peft = require("peft", "peft")
    weights = peft.load_peft_weights(
        str(folder), device="cpu", key_mapping=getattr(model, "_checkpoint_conversion_mapping", None)
    )
    _resize(model, weights)
    try:
        adapted = peft.PeftModel.from_pretrained(model, str(folder)).eval()
    except KeyError as error:  # of modules_to_save and single tokens
        raise _misfit(folder, f"with every tensor in its file, but {error} is not there") from error
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        first = str(error).split("\n\t")[:2][-1].rstrip(".")  # of several that do not fit
        raise _misfit(folder, f"that fits the base model, but: {first}") from error
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise InputError("ADAPTER_DIR", kind, "an adapter that adds to weights, such as LoRA", "It cannot be merged.")
    _account(adapted, _as_loaded(adapted, weights), folder)
    return adapted


def _as_loaded(adapted: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The file's tensors as peft puts them in: those of experts that transformers now keeps as one are one."""
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers as fuse
    except ImportError:  # an older peft, that knows no such experts
        return weights
    name = adapted.active_adapter
    fused = fuse(model=adapted, peft_config=adapted.active_peft_config, adapter_state_dict=weights, adapter_name=name)
    return {key if key in weights else key.replace(f".{name}", ""): x for key, x in fused.items()}


def _account(adapted: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Raise `InputError` unless the file holds what peft would save of the model now."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        needed = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
        in_use = needed | peft.get_peft_model_state_dict(adapted, save_embedding_layers=True)
    if missing := needed.keys() - weights.keys():
        raise _misfit(folder, f"with every tensor in its file; these are not there: {first_few(missing)}")
    unused = [name for name, x in weights.items() if name not in in_use or not _same(x, in_use[name])]
    if unused:
        raise _misfit(folder, f"whose tensors all have a place in the model; these have none: {first_few(unused)}")


def _same(written: torch.Tensor, held: torch.Tensor) -> bool:
    return written.shape == held.shape and torch.allclose(written.to(held), held, rtol=0, atol=0, equal_nan=True)


def _misfit(folder: Path, expected: str) -> InputError:
    fix = "Is the file whole, and this the base model that the adapter was trained on? Name another with --model."
    return InputError("ADAPTER_DIR", str(folder), f"an adapter {expected}", fix)


def _resize(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """As many rows in the embeddings as the adapter's file has of them; what it leaves out of them is NaN."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    kept = [f"base_model.model.{name}{inner}.weight" for name in names for inner in INNER]
    rows = {len(weights[name]) for name in kept if name in weights}
    before = model.get_input_embeddings().weight.shape[0]
    if len(rows) != 1 or rows == {before}:
        return
    model.resize_token_embeddings(rows.pop(), mean_resizing=False)
    with torch.no_grad():
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            end.weight[before:] = torch.nan
