"""Which columns mean what: decided once, before any row is looked at, by what the options name and then by name."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError
from fastkto.rows.readers import hint

if TYPE_CHECKING:
    from fastkto.rows.normalise import RowOptions

CARRIED = ("tools", "chat_template_kwargs", "truncated")
PICTURES = ("images", "image")
COUNTED = "source"
"""Where a row comes from: nothing is trained on it, and `fastkto data` counts by it."""


@dataclass(frozen=True)
class Columns:
    """A shape of row ("completion", "paired" or "messages") and the column, or path into one, of each of its parts."""

    shape: str
    prompt: str | None = None
    completion: str | None = None
    label: str | None = None
    messages: str | None = None
    weight: str | None = None
    carried: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def beside(self) -> tuple[str, ...]:
        """What rows have beside prompt, completion, label and their numbers."""
        return self.carried if self.weight is None else (*self.carried, "weight")

    def sentence(self, options: "RowOptions") -> str:
        """The decision in words: "prompt <- question, label <- stars >= 4; not used: user"."""
        parts = {"prompt": self.prompt, "messages": self.messages, "completion": self.completion}
        lines = [f"{part} <- {column}" for part, column in parts.items() if column]
        if self.shape == "paired":
            lines += ["desirable <- chosen", "undesirable <- rejected"]
            lines += ["prompt <- what both begin with"] * (self.prompt is None)
        if self.label:
            lines.append(f"label <- {self.label}{_condition(options)}")
        lines += [f"weight <- {self.weight}"] * (self.weight is not None)
        lines += [f"{column} <- {column}" for column in self.carried]
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        return ", ".join(lines) + unused


def decide(columns: Sequence[str], filled: Callable[[str], bool], options: "RowOptions", dataset_name: str) -> Columns:
    """The meaning of `columns`; one for which `filled` is false holds nothing and does not count.

    What an option names is that column. Where the names fit two shapes, or options and columns contradict each other,
    that is an error that names both.
    """
    where = f"{dataset_name} columns"
    present = [column for column in columns if filled(column)]
    if pictures := [column for column in PICTURES if column in present]:
        fix = "Remove the column to train on the text alone, or use trl.KTOTrainer."
        raise InputError(where, list(columns), f"rows of text, without {pictures[0]!r}", fix)
    for option in ("prompt_column", "completion_column", "label_column", "weight_column"):
        if (named := getattr(options, option)) is not None and head(named, columns) is None:
            raise InputError(where, list(columns), f"a column {named!r}", f"Correct --{option}.")
    chosen = replace(_shape(columns, present, options, where), weight=options.weight_column)
    paths = chosen.prompt, chosen.completion, chosen.label, chosen.messages, chosen.weight
    used = {head(path, columns) for path in paths if path}
    used |= {"chosen", "rejected"} if chosen.shape == "paired" else set()
    carried = tuple(column for column in CARRIED if column in columns and column not in used)
    unused = tuple(column for column in present if column not in (*used, *carried, COUNTED))
    return replace(chosen, carried=carried, unused=unused)


def _shape(columns: Sequence[str], present: list[str], options: "RowOptions", where: str) -> Columns:
    prompt, completion, label = options.prompt_column, options.completion_column, options.label_column
    if completion is not None:
        return _completion(columns, options, where)
    paired = {"chosen", "rejected"} <= {*present}
    labelled = label or ("label" if "label" in present else None)
    text = labelled and "completion" in present and (prompt or "prompt" in present)
    chat = labelled and "messages" in present
    if paired:
        if label is not None:
            raise _contradiction(where, f"label_column {label!r}", "chosen + rejected, which have no label")
        if text or chat:
            other = "prompt + completion + label" if text else "messages + label"
            raise _contradiction(where, other, "chosen + rejected")
        for option in ("label_map", "label_threshold", "label_band"):
            if getattr(options, option) is not None:
                raise _contradiction(where, f"{option} {getattr(options, option)}", "chosen + rejected without a label")
        return Columns("paired", prompt=prompt or ("prompt" if "prompt" in present else None))
    if text and chat and prompt is None:
        raise _contradiction(where, "prompt + completion + label", "messages + label")
    if "completion" in present:
        return _completion(columns, options, where)
    if prompt is not None and "messages" not in present:
        return Columns("messages", messages=prompt, label=label or "label")
    if "messages" in present:
        if prompt is not None:
            raise _contradiction(where, f"prompt_column {prompt!r}", "messages, and no completion_column")
        return Columns("messages", messages="messages", label=labelled or "label")
    if "completion" in columns and {"prompt", "label"} <= {*columns}:
        return _completion(columns, options, where)  # empty cells are faults of their rows
    if {"chosen", "rejected"} <= {*columns}:
        return Columns("paired", prompt=prompt or ("prompt" if "prompt" in present else None))
    raise InputError(
        where,
        list(columns),
        f"{prompt or 'prompt'} + completion + {label or 'label'}, chosen + rejected, or messages + {label or 'label'}",
        f"Name yours with --prompt_column, --completion_column and --label_column.{hint(columns)}",
    )


def _completion(columns: Sequence[str], options: "RowOptions", where: str) -> Columns:
    found: list[str] = []
    for part in ("prompt", "completion", "label"):
        column = getattr(options, f"{part}_column") or part
        if head(column, columns) is None:
            raise InputError(where, list(columns), f"a column {column!r}", f"Name yours with --{part}_column.")
        found.append(column)
    prompt, completion, label = found
    return Columns("completion", prompt, completion, label)


def _contradiction(where: str, one: str, other: str) -> InputError:
    fix = "Name the columns to use with --prompt_column, --completion_column and --label_column, or remove the others."
    return InputError(where, f"{one}, and {other}", "one of the two", fix)


def _condition(options: "RowOptions") -> str:
    if options.label_threshold is not None:
        return f" >= {options.label_threshold:g}"
    if options.label_band is not None:
        low, high = options.label_band
        return f" (undesirable <= {low:g}, desirable >= {high:g}, left out between)"
    if options.label_map:
        entries = options.label_map.items() if isinstance(options.label_map, dict) else options.label_map
        return f" ({', '.join('='.join(map(str, e)) if isinstance(e, tuple) else e for e in entries)})"
    return ""


def head(path: str, columns: Sequence[str]) -> str | None:
    """The column that a path such as "inputs.messages" goes into: the longest that it begins with."""
    parts = path.split(".")
    starts = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((start for start in starts if start in columns), None)


def value_at(row: dict[str, Any], path: str) -> Any:
    """What a row holds at a path; None where there is nothing. A number goes into a list; JSON in a cell is read."""
    return _inside(row, path.split("."))


def _inside(value: Any, parts: list[str]) -> Any:
    if not parts:
        return value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if isinstance(value, list):
        index = parts[0].removeprefix("-")
        inside = index.isdecimal() and -len(value) <= int(parts[0]) < len(value)
        return _inside(value[int(parts[0])], parts[1:]) if inside else None
    if isinstance(value, dict):
        for n in range(len(parts), 0, -1):
            if (key := ".".join(parts[:n])) in value:
                return _inside(value[key], parts[n:])
    return None
