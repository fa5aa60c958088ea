"""A YAML file as named settings that remember their line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastkto.errors import InputError, require
from fastkto.yaml_file import read_yaml

if TYPE_CHECKING:
    import yaml


class Setting(NamedTuple):
    """One top-level `key: value`."""

    value: Any
    node: "yaml.Node"
    where: str
    """File, line and key, for errors."""


def read_config(path: str) -> dict[str, Setting]:
    """The settings of a YAML mapping. Errors: `InputError` naming the file and the line."""
    values, root = read_yaml(path, "config")
    if not isinstance(values, dict):
        raise InputError(
            path, values, "a mapping of `field: value` lines", "See `fastkto train --help` for the fields."
        )
    yaml = require("yaml", "train")
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
