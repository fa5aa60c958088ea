"""Cells that hold text or messages, written as they are or as JSON in a text cell."""

import ast
import json
import re
from typing import Any

from fastkto.rows.files.characters import whole_characters
from fastkto.rows.shapes.faults import Unusable

LIKE_MESSAGES = r"^\s*\[?\s*\{\s*['\"](role|content)['\"]\s*:"
_MESSAGES = re.compile(LIKE_MESSAGES)
_PAYLOADS = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


def text_or_messages(cell: Any, where: str, missing: str) -> Any:
    """A cell that holds text or a list of messages, checked; lone surrogates become U+FFFD, with one warning.

    Text that is a list of messages in JSON (or as Python prints one) is read as messages. An empty cell is a fault of
    the kind `missing`.
    """
    if cell is None or (isinstance(cell, float) and cell != cell):
        fix = "The cell is empty: fill it, or leave out all such rows with --on_empty drop."
        raise Unusable(where, cell, "text or a list of messages", fix, missing)
    if isinstance(cell, str) and _MESSAGES.match(cell):
        cell = _parsed(cell, where)
    if isinstance(cell, dict):
        cell = [cell]
    if isinstance(cell, list):
        if not cell:
            raise Unusable(where, cell, "at least one message", "Fill it or remove the row.", missing)
        for i, message in enumerate(cell):
            _check(message, f"{where}, message {i}")
    elif not isinstance(cell, str):
        fix = "Convert the column; fastkto.read_rows(PATH) reads text in files as text."
        raise Unusable(where, cell, "text or a list of messages", fix)
    return whole_characters(cell)


def json_cell(cell: Any, where: str) -> Any:
    """A cell that holds JSON as text or already read (tools, chat_template_kwargs)."""
    if not isinstance(cell, str):
        return cell
    try:
        return json.loads(cell) if cell.strip() else None
    except (ValueError, RecursionError) as error:
        raise Unusable(where, cell, "JSON", f"Correct the cell: {error}.") from error


def holds(cell: Any) -> bool:
    """Whether there is anything in a cell: a list of nothing holds nothing, nor does JSON of an empty one."""
    if isinstance(cell, str):
        return bool(cell.strip()) and cell.strip() not in ("[]", "{}", "null")
    if isinstance(cell, list | tuple):
        return any(map(holds, cell))
    return cell is not None and cell == cell and cell != {}


def _parsed(cell: str, where: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        fix = "Write the list with json.dumps, or plain text that does not begin like one."
        raise Unusable(where, cell, "text, or messages as JSON", fix) from error


def _check(message: Any, where: str) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Unusable(where, message, "a dict with a 'role'", "Add the role as text.")
    content = message.get("content")
    if not (isinstance(content, str | list) or (content is None and any(message.get(key) for key in _PAYLOADS))):
        fix = "Give the message its content as text."
        raise Unusable(where, message, "a 'content' (or 'tool_calls')", fix)
