"""The records of a JSON file: one object a line, an array of objects, or one object."""

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from fastkto.errors import InputError
from fastkto.rows.files.characters import whole_characters
from fastkto.rows.files.opening import encoding_of, not_text, open_text

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def json_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of `path` as they are written. Errors: `InputError` naming the line."""
    number = 0
    try:
        with open_text(path, encoding_of(path)) as file:
            lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            first = next(lines, None)
            if first is None:
                return
            number, line = first
            if not _is_object(line):
                blank = "\n" * (number - 1)
                yield from _elements("".join([blank, line, *file]), path)
                return
            for number, line in chain([first], lines):
                record = _parse(line, path, number)
                if not isinstance(record, dict):
                    raise _no_object(path, f"line {number}", record)
                yield record
    except UnicodeDecodeError as error:
        raise not_text(path, error, number + 1) from error


def _elements(text: str, path: Path) -> Iterator[dict[str, Any]]:
    content = _parse(text, path, 1)
    for i, record in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(record, dict):
            raise _no_object(path, f"element {i}", record)
        yield record


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse(text: str, path: Path, number: int) -> Any:
    try:
        value = json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        line = number + error.lineno - 1
        found = text[error.pos : error.pos + 40]
        raise InputError(
            "dataset",
            str(path),
            f"JSON in line {line}",
            f"The reader says: {error.msg} at column {error.colno}, {found!r}. Correct the line or remove it.",
        ) from error
    except RecursionError as error:
        fix = "The reader says: it is nested too deeply. Remove it."
        raise InputError("dataset", str(path), f"JSON in line {number}", fix) from error
    return whole_characters(value) if _SURROGATE.search(text) else value


def _no_object(path: Path, place: str, found: Any) -> InputError:
    return InputError("dataset", str(path), f"a JSON object in {place}", f"The reader says: it is {found!r:.60}.")
