"""Which model a folder holds, and the base that it was trained from."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from fastkto.errors import InputError
from fastkto.training.faults.checkpoints import newest_first, why_torn
from fastkto.training.output.card.text import FILE as CARD
from fastkto.training.output.record import FILE as RECORD
from fastkto.yaml_file import read_yaml

ADAPTER, MODEL = "adapter_config.json", "config.json"
WEIGHTS = ("*model*.safetensors", "*model*.safetensors.index.json")


class Found(NamedTuple):
    """A model on disk."""

    folder: Path
    adapter: bool
    base: str | None
    """The folder or id of what it was trained from, where something says so."""
    plain: bool
    """The training's rows were text that went past the chat template."""
    said: str | None
    """What a user should know of how it was found."""


def find(out: str) -> Found:
    """The model that `out` holds; of a run that has not ended, its newest whole checkpoint."""
    folder = Path(out).expanduser()
    if not folder.is_dir():
        fix = f"Name the output_dir of a training. Looked in {Path.cwd()}."
        raise InputError("OUT", out, "a folder that exists", fix)
    if _holds_model(folder):
        return _found(folder, None)
    checkpoints = newest_first(folder)
    whole = next((path for path in checkpoints if why_torn(path) is None and _holds_model(path)), None)
    if whole is not None:
        return _found(whole, f"{folder} holds no finished model: this is its newest whole checkpoint, {whole.name}.")
    of_a_run = sorted(folder.glob(f"*/{ADAPTER}")) if (folder / RECORD).is_file() else []
    named = [path for path in of_a_run if path.parent not in checkpoints]
    if len(named) == 1:
        return _found(named[0].parent, None)
    if named:
        names = ", ".join(path.parent.name for path in named)
        raise InputError("OUT", f"{out} with the adapters {names}", "one adapter", "Name the folder of one.")
    if checkpoints:
        expected = f"a whole model or checkpoint, but {checkpoints[0].name} is torn: {why_torn(checkpoints[0])}"
        raise InputError("OUT", out, expected, "Train again with resume_from_checkpoint=true.")
    fix = "Name the output_dir of a training that has ended, or a checkpoint of it."
    raise InputError("OUT", out, f"a folder with a model ({MODEL} or {ADAPTER}, and its weights)", fix)


def _holds_model(folder: Path) -> bool:
    named = any((folder / name).is_file() for name in (ADAPTER, MODEL))
    return named and any(path for pattern in WEIGHTS for path in folder.glob(pattern))


def _found(folder: Path, said: str | None) -> Found:
    file = folder / ADAPTER
    if not file.is_file():
        return Found(folder, False, _base_of_run(folder), _plain(folder), said)
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise InputError("OUT", str(file), f"a JSON object, but {error}", "Copy the folder again.") from error
    of_run = _base_of_run(folder)
    if of_run is not None and Path(of_run).is_dir() and not Path(base or "").is_absolute():
        base = of_run  # the path is as it was typed, and this not the folder where
    return Found(folder, True, base or None, _plain(folder), said)


def _plain(folder: Path) -> bool:
    file = next((place / RECORD for place in (folder, folder.parent) if (place / RECORD).is_file()), None)
    if file is None:
        return False
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("plain"))
    except (ValueError, AttributeError):  # whoever damaged it, the model is as it was
        return False


def _base_of_run(folder: Path) -> str | None:
    """What the run's settings name as its model, else its card; a checkpoint's are in the folder above it."""
    places = [folder, folder.parent] if folder.name.startswith("checkpoint-") else [folder]
    for place in places:
        if (settings := place / "run.yaml").is_file():
            values, _ = read_yaml(str(settings), "run.yaml")
            if isinstance(values, dict) and (name := values.get("model_name_or_path")):
                return str(name)
    for place in places:
        if (card := place / CARD).is_file():
            found = re.search(r"^base_model: (.+)$", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
            if found:
                return found[1].strip()
    return None
