"""A YAML file as named settings that remember their line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastkto.errors import InputError, require

if TYPE_CHECKING:
    import yaml


class Setting(NamedTuple):
    """One top-level `key: value`."""

    value: Any
    node: "yaml.Node"
    where: str
    """File, line and key, for errors."""


def read_config(path: str) -> dict[str, Setting]:
    """The settings of a YAML mapping, read by `yaml.safe_load`. Errors: `InputError` naming the file and the line."""
    yaml = require("yaml", "train")
    if not Path(path).is_file():
        raise InputError("config", path, "a YAML file that exists", f"Looked in {Path.cwd()}.")
    try:
        text = Path(path).read_text(encoding="utf-8")
        values, root = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise InputError(path, f"{error.object[error.start]:#x}", "text in UTF-8", "Save the file as UTF-8.") from error
    except yaml.YAMLError as error:
        raise _syntax_error(path, text, error) from error
    if not isinstance(values, dict):
        raise InputError(
            path, values, "a mapping of `field: value` lines", "See `fastkto train --help` for the fields."
        )
    nodes = {key.value: (key.start_mark.line + 1, node) for key, node in root.value}
    settings = {}
    for key, value in values.items():
        line, node = nodes.get(key, (root.start_mark.line + 1, yaml.ScalarNode("", str(value))))
        settings[str(key)] = Setting(value, node, f"{path} line {line}, {key}")
    return settings


def write_config(folder: str, settings: Mapping[str, Any]) -> Path:
    """Write settings as `run.yaml`, which `read_config` reads back; paths that exist become absolute."""
    yaml, path = require("yaml", "train"), Path(folder) / "run.yaml"
    plain = json.loads(json.dumps(settings, default=str))
    found = {k: str(Path(v).absolute()) if isinstance(v, str) and Path(v).exists() else v for k, v in plain.items()}
    path.write_text(yaml.safe_dump(found, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def _syntax_error(path: str, text: str, error: Any) -> InputError:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return InputError(path, str(error), "valid YAML", "Correct the file.")
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else "the end of the file"
    return InputError(f"{path} line {mark.line + 1}", line, f"valid YAML ({error.problem})", "Correct the line.")
