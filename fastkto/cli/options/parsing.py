"""Dataclasses from a YAML file and flags: `HfArgumentParser`'s conventions, and no key that is silently ignored."""

import argparse
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from fastkto.cli.help.essentials import WHERE_DECLARED
from fastkto.cli.help.page import Groups
from fastkto.cli.options.arguments import DataArguments, LaunchArguments, ModelArguments
from fastkto.cli.options.known import unknown_setting
from fastkto.cli.options.strict import StrictParser
from fastkto.cli.options.yaml_config import Setting
from fastkto.config import KTOConfig
from fastkto.errors import InputError
from fastkto.ranges import RANGES, check_range
from fastkto.rows import RowOptions

T = TypeVar("T")


class DataclassParser(StrictParser, HfArgumentParser):
    """Fields of several dataclasses as flags, with the settings of a YAML file beneath the flags."""

    def __init__(self, *dataclass_types: type, **kwargs: Any) -> None:
        super().__init__(dataclass_types=dataclass_types, **kwargs)
        self.hints = {name: hint for cls in dataclass_types for name, hint in get_type_hints(cls).items()}
        self.fields = {action.dest: action for action in reversed(self._actions) if action.dest in self.hints}
        for name, action in self.fields.items():
            kinds = get_args(self.hints[name])
            if str in kinds and action.type in (int, float):
                action.type = str  # e.g. float | str: the dataclass tells a number from a word
            elif types.NoneType in kinds and str not in kinds and action.nargs is None and callable(action.type):
                action.type = _or_none(action.type)
            if not (self.hints[name] is bool or (bool in kinds and get_origin(self.hints[name]) is not dict)):
                continue
            if action.nargs is None:  # of bool | None
                action.nargs, action.const = "?", True
            if f"--no_{name}" not in self._option_string_actions:
                off = (f"--no_{name}", f"--no-{name.replace('_', '-')}")  # as TRL has them where its default is true
                self.add_argument(*off, dest=name, action="store_false", default=None, help=argparse.SUPPRESS)
        self.groups = _declared_in(dataclass_types)

    def read(self, argv: Sequence[str], settings: Mapping[str, Setting] | None = None) -> dict[str, Any]:
        """The value of every field: flags before settings before defaults. Errors: `InputError`, `UsageError`."""
        values = {name: self._convert(name, setting) for name, setting in (settings or {}).items()}
        return vars(self.parse_all(argv, argparse.Namespace(**values)))

    def given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Of what `read` returned, the fields that are not defaults."""
        return {name: value for name, value in values.items() if value != self.get_default(name)}

    def _convert(self, name: str, setting: Setting) -> Any:
        if name not in self.fields:
            raise unknown_setting(name, setting, self.fields)
        action, hint = self.fields[name], self.hints[name]
        value = setting.value if fits(setting.value, hint) else self._from_text(action, hint, setting)
        if action.choices is not None and value is not None and value not in action.choices:
            raise InputError(setting.where, value, f"one of {tuple(action.choices)}", "Correct the value.")
        if name in RANGES and not isinstance(value, str):
            check_range(name, value, setting.where)
        return value

    def _from_text(self, action: argparse.Action, hint: Any, setting: Setting) -> Any:
        """What is not of the field's type is read as the text would be on the command line."""
        node, convert = setting.node.value, action.type or str
        assert callable(convert)
        try:
            if isinstance(node, str) and setting.value is not None:
                return [convert(node)] if action.nargs == "+" else convert(node)
            if action.nargs == "+" and isinstance(setting.value, dict):
                return [convert(f"{_text(key)}={_text(value)}") for key, value in node]
            if action.nargs == "+" and isinstance(setting.value, list):
                return [convert(_text(item)) for item in node]
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            pass
        raise InputError(setting.where, setting.value, describe(hint), "Correct the value, or leave the field out.")


def _declared_in(classes: Sequence[type]) -> Groups:
    """The fields by the class that declares them, in the order in which a reader asks for them."""
    groups: dict[str, dict[str, str]] = {}
    seen: set[str] = set()
    for cls in classes:
        for base in filter(is_dataclass, cls.__mro__):
            names = [name for name in inspect.get_annotations(base) if name not in seen]
            fields_here = {field.name for field in fields(base) if field.init}
            groups[WHERE_DECLARED.get(base.__name__, base.__name__)] = {n: "" for n in names if n in fields_here}
            seen |= {*names}
    return groups


def _text(node: Any) -> str:
    if not isinstance(node.value, str):
        raise TypeError("a list or mapping where a single value belongs")
    return node.value


def training_parser(**kwargs: Any) -> DataclassParser:
    """Every option of `fastkto train`, as a field of its dataclass."""
    return DataclassParser(DataArguments, RowOptions, ModelArguments, KTOConfig, LaunchArguments, **kwargs)


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """An instance of a dataclass from what `DataclassParser.read` returned."""
    return cls(**{field.name: values[field.name] for field in fields(cls) if field.init})  # type: ignore[arg-type]


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value is of a field's type; an integer is a float too, a boolean is neither."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(fits(item, get_args(hint)[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def describe(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(describe(part) for part in get_args(hint))
    words = {float: "a number", int: "an integer", bool: "true or false", str: "text", types.NoneType: "null"}
    words |= {list: "a list", dict: "a mapping"}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {tuple(member.value for member in hint)}"
    return words.get(get_origin(hint) or hint) or str(hint)


def _or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return None if text.lower() in ("none", "null") else convert(text)

    parse.__name__ = getattr(convert, "__name__", "value")
    return parse
