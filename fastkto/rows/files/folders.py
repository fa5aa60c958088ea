"""The data files of a folder, and which split each belongs to."""

import logging
import re
from pathlib import Path

from fastkto.errors import InputError
from fastkto.rows.files.opening import KINDS, kind_of

logger = logging.getLogger(__name__)

_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split; a file whose path names no split belongs to "train". What is left out is said.

    Errors: `InputError` for a folder without data files, without this split, or in which files of one split are of
    several kinds or one is there twice.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path.relative_to(folder))]
    data = [path for path in files if kind_of(path)]
    if not data:
        kinds = ", ".join(KINDS)
        raise InputError("dataset", str(folder), f"a folder with files in {kinds}", "Name another folder.")
    splits: dict[str, list[Path]] = {}
    for path in data:
        splits.setdefault(split_of(path.relative_to(folder)), []).append(path)
    if split not in splits:
        there = ", ".join(f"{name} ({paths[0].name})" for name, paths in splits.items())
        raise InputError(
            "dataset", str(folder), f"rows that can be read as split {split!r}", f"The folder has: {there}."
        )
    chosen = splits[split]
    check_one_kind(chosen, folder)
    left = [str(path.relative_to(folder)) for path in files if path not in chosen]
    if left or len(chosen) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in chosen)
        logger.warning("%s: split %r is read from %s; not read: %s", folder, split, names, ", ".join(left) or "nothing")
    return chosen


def split_of(path: Path) -> str:
    """The split that a file's name or, failing that, one of its folders names; else "train"."""
    for part in (path.name, *reversed(path.parent.parts)):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return "train"


def check_one_kind(files: list[Path], source: Path) -> None:
    """Refuse files of several kinds, which have no columns in common to be joined by, and a file beside its copy."""
    first = {kind_of(path): path.name for path in reversed(files)}
    if len(first) > 1:
        fix = "Name one of the files, or list them under `datasets` in a YAML file."
        raise InputError("dataset", str(source), f"files of one kind, not {' and '.join(first.values())}", fix)
    names: dict[str, Path] = {}
    for path in files:
        bare = str(path.parent / path.name.partition(".")[0]) + "".join(s for s in path.suffixes if s.lower() in KINDS)
        if (other := names.setdefault(bare, path)) is not path:
            raise InputError("dataset", str(source), f"{other.name} or {path.name}, not both", "Remove one of them.")


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)
