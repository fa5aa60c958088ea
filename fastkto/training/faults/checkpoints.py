"""Checkpoints on disk: written whole or not at all, a torn one recognised, and the newest whole one found."""

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from fastkto.disk import writing
from fastkto.errors import InputError
from fastkto.training.output.adapters import FILE as ADAPTER_FILE
from fastkto.training.output.adapters import check_shapes, trained
from fastkto.trunk.modules import is_peft_model

logger = logging.get_logger(__name__)

WEIGHTS = ("*model*.safetensors", "pytorch_model*.bin", "pytorch_model_fsdp*", "global_step*", "*/adapter_model.*")


def checkpoint_folder(asked: "str | os.PathLike[str] | bool | None", output_dir: str | None) -> str | None:
    """The checkpoint to resume from: the folder named, the newest whole one of the output directory for True, or None.

    A torn one, of a run that was killed while it wrote, is passed over for True and refused by name otherwise. Where
    there is none, True starts from the beginning, so that a requeued job needs no hand.
    """
    if asked is None or asked is False:
        return None
    if asked is True:
        return _newest_whole(Path(output_dir or "."))
    folder = Path(asked).expanduser()
    if not (folder / TRAINER_STATE_NAME).is_file() and not any(folder.glob("*.safetensors")):
        fix = "Name a checkpoint-* folder of an output directory."
        raise InputError("resume_from_checkpoint", str(asked), f"a folder that holds {TRAINER_STATE_NAME}", fix)
    if (reason := why_torn(folder)) is not None:
        others = [other.name for other in newest_first(folder.parent) if why_torn(other) is None]
        fix = f"Name {others[0]}, the newest that is whole." if others else "Start over: no other is whole."
        raise InputError("resume_from_checkpoint", str(asked), f"a whole checkpoint, but {reason}", fix)
    return os.fspath(folder)


def why_torn(folder: Path) -> str | None:
    """What shows that a checkpoint was not written to its end, or None. Reads no tensor."""
    try:
        state = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{TRAINER_STATE_NAME}, which is written last, is not there"
    except (ValueError, OSError) as error:
        return f"{TRAINER_STATE_NAME} cannot be read ({error})"
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        return f"{TRAINER_STATE_NAME} has no global_step"
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        return "no file of weights is there"
    for index in folder.glob("*.index.json"):
        try:
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            return f"{index.name} cannot be read ({type(error).__name__})"
        for part in sorted(parts):
            if not (folder / part).is_file():
                return f"{part}, which {index.name} names, is not there"
    for path in sorted(folder.rglob("*.safetensors")):
        if not _is_whole_safetensors(path):
            return f"{path.name} is shorter than it says"
    for path in sorted((*folder.glob("*.pt"), *folder.glob("*.pth"))):
        if not zipfile.is_zipfile(path):
            return f"{path.name} ends too early"
    return None


def check_fits(checkpoint: str, model: Any) -> None:
    """Raise `InputError` where a checkpoint's weights are not those of this model; only shapes are read."""
    files, adapter_file = sorted(Path(checkpoint).glob("*model*.safetensors")), Path(checkpoint) / ADAPTER_FILE
    adapter, stored_adapter = is_peft_model(model), adapter_file.is_file()
    if not files and not stored_adapter:
        return  # another engine's format, which checks by itself
    stored_adapter = stored_adapter or files[0].name.startswith("adapter")
    if adapter != stored_adapter:
        kinds = ("all weights", "an adapter")
        fix = "Set use_peft as it was in the run that wrote it, or start over."
        expected = f"a checkpoint of {kinds[adapter]}"
        raise InputError("resume_from_checkpoint", checkpoint, f"{expected}, not of {kinds[not adapter]}", fix)
    if adapter:
        if adapter_file.is_file():
            check_shapes(checkpoint, trained(model), _shapes(adapter_file))
        return
    own: dict[str, torch.Tensor] = model.state_dict()
    stored = {name: shape for file in files for name, shape in _shapes(file).items()}
    places = {own[name].data_ptr() for name in stored if name in own}  # tied weights are stored once
    once = {name: x for name, x in own.items() if name in stored or x.data_ptr() not in places}
    check_shapes(checkpoint, once, stored)


def check_scaler(checkpoint: str, accelerator: Any) -> None:
    """Raise `InputError` for the checkpoint of a run in fp16 where this one is not: its Trainer has no place for it."""
    if accelerator.scaler is None and (Path(checkpoint) / "scaler.pt").exists():
        fix = "Set fp16 as in the run that wrote it, or start over."
        raise InputError("resume_from_checkpoint", checkpoint, "no scaler.pt, which belongs to fp16", fix)


@contextlib.contextmanager
def written_to_its_end(folder: Path, *, main_process: bool) -> Iterator[None]:
    """A checkpoint counts as torn until the block has written its last file; a block that fails leaves no folder.

    Errors: `InputError` for a disk that is full or refuses.
    """
    if main_process:
        (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)  # of an older run, which this one now overwrites
    try:
        with writing("output_dir", folder, "a checkpoint"):
            yield
    except BaseException:
        if main_process:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _newest_whole(output_dir: Path) -> str | None:
    for folder in newest_first(output_dir):
        if (reason := why_torn(folder)) is None:
            return str(folder)
        logger.warning(f"{folder} is torn ({reason}) and passed over.")
    logger.warning(f"There is no whole checkpoint in {output_dir} to resume from: the run starts from its beginning.")
    return None


def newest_first(output_dir: Path) -> list[Path]:
    """The checkpoints of an output directory, torn ones too."""
    numbered = [(path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"), path) for path in output_dir.glob("checkpoint-*")]
    steps = [(int(number), path) for number, path in numbered if number.isdecimal() and path.is_dir()]
    return [path for _, path in sorted(steps, reverse=True)]


def _is_whole_safetensors(path: Path) -> bool:
    """Whether the file is as long as its header says: 8 bytes of length, the header, the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            return False
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
