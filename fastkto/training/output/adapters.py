"""An adapter in a checkpoint: every weight of it that trains, under its own name, whatever peft keeps or works out."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fastkto.errors import InputError

FILE = "adapter_state.safetensors"


def trained(model: Any) -> dict[str, torch.Tensor]:
    """The weights that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_adapter(model: Any, checkpoint: str | Path) -> None:
    """Put what trains into the checkpoint: peft's own file may hold less, as of a prompt encoder only its output."""
    tensors = {name: x.detach().cpu().contiguous() for name, x in trained(model).items()}
    save_file(tensors, Path(checkpoint) / FILE)


def load_adapter(model: Any, checkpoint: str | Path) -> None:
    """Put the weights back, bit for bit; where the checkpoint has peft's files only, of every adapter by its name.

    Errors: `InputError` for a checkpoint of another adapter, before anything is changed.
    """
    path = Path(checkpoint) / FILE
    if not path.is_file():
        _load_as_peft(model, Path(checkpoint))
        return
    own, stored = trained(model), load_file(path)
    check_shapes(str(checkpoint), own, {name: tuple(x.shape) for name, x in stored.items()})
    with torch.no_grad():
        for name, x in own.items():
            x.copy_(stored[name])


def check_shapes(checkpoint: str, own: dict[str, torch.Tensor], stored: dict[str, tuple[int, ...]]) -> None:
    """Raise `InputError` where a checkpoint's weights are not those of this model."""
    for name, shape in stored.items():
        found = tuple(own[name].shape) if name in own else None
        if found != shape:
            has = "which this model has not" if found is None else f"where this model has {found}"
            raise _of_another_model(checkpoint, f"{name} has the shape {shape}, {has}")
    if missing := sorted(own.keys() - stored.keys()):
        raise _of_another_model(checkpoint, f"{missing[0]} is not in it")


def _of_another_model(checkpoint: str, what: str) -> InputError:
    fix = "Name the model that the run was started with, or start over."
    return InputError("resume_from_checkpoint", checkpoint, f"a checkpoint of this model, but {what}", fix)


def _load_as_peft(model: Any, checkpoint: Path) -> None:
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    for name in model.peft_config:
        folder = checkpoint if name == "default" else checkpoint / name
        if not any(folder.glob("adapter_model.*")):
            raise _of_another_model(str(checkpoint), f"the adapter {name!r} is not in it")
        stored = load_peft_weights(str(folder), device="cpu")
        shapes = {key: tuple(x.shape) for key, x in stored.items()}
        check_shapes(str(checkpoint), get_peft_model_state_dict(model, adapter_name=name), shapes)
        set_peft_model_state_dict(model, stored, adapter_name=name)
