"""The options, read from the source of the dataclasses that declare them; the modules themselves are not imported."""

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from fastkto.errors import MissingExtra

SOURCES = {
    "DataArguments": ("fastkto", "cli/options/arguments.py"),
    "RowOptions": ("fastkto", "rows/normalise.py"),
    "ModelArguments": ("fastkto", "cli/options/arguments.py"),
    "KTOConfig": ("fastkto", "config.py"),
    "TrainingArguments": ("transformers", "training_args.py"),
    "LaunchArguments": ("fastkto", "cli/options/arguments.py"),
}
"""By class: the installed package and the file of it."""


class Declared(NamedTuple):
    """A field as it is written down."""

    annotation: str
    default: Any
    """None too where the source has no plain value."""
    help: str
    nargs: Any


def options_of_training() -> dict[str, Declared]:
    """What `fastkto train` takes; the fields of `TrainingArguments` are those of the installed transformers."""
    classes = ("DataArguments", "RowOptions", "ModelArguments", "KTOConfig", "LaunchArguments")
    return {name: field for cls in classes for name, field in fields_of(cls).items()}


def options_of_accelerate() -> set[str]:
    """The names that the installed `accelerate launch` takes."""
    calls = [node for node in ast.walk(_parsed("accelerate", "commands/launch.py")) if isinstance(node, ast.Call)]
    added = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    texts = [argument.value for call in added for argument in call.args if isinstance(argument, ast.Constant)]
    return {text.lstrip("-").replace("-", "_") for text in texts if isinstance(text, str)}


def fields_of(name: str) -> dict[str, Declared]:
    """The fields of a dataclass in `SOURCES`, those of its bases first."""
    found: dict[str, Declared] = {}
    cls = next(node for node in _parsed(*SOURCES[name]).body if isinstance(node, ast.ClassDef) and node.name == name)
    for base in map(ast.unparse, cls.bases):
        found |= fields_of(base)
    return found | dict(_fields(cls))


@cache
def _parsed(package: str, file: str) -> ast.Module:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(package, "train")
    return ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))


def _fields(cls: ast.ClassDef) -> Iterator[tuple[str, Declared]]:
    for line in cls.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        given: dict[str | None, ast.expr] = {"default": line.value} if line.value is not None else {}
        if isinstance(line.value, ast.Call):
            given = {keyword.arg: keyword.value for keyword in line.value.keywords}
        if _value(given.get("init")) is not False:
            metadata = given.get("metadata")
            pairs = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
            said = {_value(key): _value(value) for key, value in pairs}
            annotation, default = ast.unparse(line.annotation), _value(given.get("default"))
            yield line.target.id, Declared(annotation, default, said.get("help") or "", said.get("nargs"))


def _value(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
