"""Settings as lines of YAML with their reasons, written whole or not at all."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastkto.disk import writing
from fastkto.errors import InputError, escaped, require
from fastkto.tools.init.settings import Setting

WIDEST = 44
"""Where reasons begin at the furthest."""


def as_yaml(command: str, settings: Sequence[Setting]) -> str:
    """The file's text: a line a setting, the reasons below one another."""
    lines = [(f"{setting.name}: {_value(setting.value)}", setting.why) for setting in settings]
    width = min(WIDEST, max(len(line) for line, why in lines if why))
    body = [f"{line:<{width}}  # {escaped(why)}" if why else line for line, why in lines]
    return "\n".join([f"# {escaped(command)}", *body]) + "\n"


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise `InputError` where the file cannot be written, or is there already."""
    if path.is_dir():
        raise InputError("output", str(path), "a file", "Name a file in it, e.g. config.yaml.")
    if os.path.lexists(path) and not overwrite:
        raise InputError("output", str(path), "a path that is free", "Choose another, or add --overwrite.")
    if not path.parent.is_dir():
        raise InputError("output", str(path), "a file in a folder that exists", "Make the folder, or choose another.")


def write_whole(path: Path, text: str) -> None:
    """Put the text into the file's place in one move."""
    with writing("output", path, "the settings"):
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent, text=True)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(scratch, 0o666 & ~_umask())
            os.replace(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _value(value: Any) -> str:
    """A value as YAML on one line."""
    text: str = require("yaml", "train").safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=2**20, sort_keys=False
    )
    return text.strip().removesuffix("...").strip()
