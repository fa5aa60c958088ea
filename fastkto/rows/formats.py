"""One source row -> the (prompt, completion, label) records in it: a pure function per shape of feedback data."""

import json
import logging
import math
from collections.abc import Iterator
from typing import Any

from fastkto.errors import InputError
from fastkto.rows.labels import LabelReader, as_bool, warn_once

Record = dict[str, Any]
logger = logging.getLogger(__name__)


def completion_record(row: Record, columns: tuple[str, str, str], read: LabelReader, where: str) -> Iterator[Record]:
    """prompt + completion + label: text, or lists of messages. `columns` are their three names in `row`."""
    prompt_column, completion_column, label_column = columns
    prompt = text_or_messages(row[prompt_column], f"{where}, column {prompt_column!r}")
    completion = text_or_messages(row[completion_column], f"{where}, column {completion_column!r}")
    if type(prompt) is not type(completion):
        raise InputError(
            f"{where}, column {completion_column!r}",
            completion,
            "the same kind as the prompt: both text or both lists of messages",
            "Write the completion as [{'role': 'assistant', 'content': ...}], or the prompt as text.",
        )
    yield {
        "prompt": prompt,
        "completion": _answer(completion, f"{where}, column {completion_column!r}"),
        "label": read(row[label_column], f"{where}, column {label_column!r}"),
    }


def paired_records(row: Record, where: str) -> Iterator[Record]:
    """chosen + rejected -> a desirable and an undesirable record; without a prompt, what both begin with is one."""
    chosen, rejected = (text_or_messages(row[key], f"{where}, column {key!r}") for key in ("chosen", "rejected"))
    if type(chosen) is not type(rejected):
        raise InputError(f"{where}, column 'rejected'", rejected, "the same kind as chosen", "Write both the same way.")
    prompt = row.get("prompt")
    if prompt is not None:
        prompt = text_or_messages(prompt, f"{where}, column 'prompt'")
    if type(prompt) is not type(chosen):
        if prompt is not None and not isinstance(chosen, list):
            raise InputError(f"{where}, column 'prompt'", prompt, "text, as chosen is", "Write both the same way.")
        start = _shared_start(chosen, rejected, where)
        prompt, chosen, rejected = chosen[:start], chosen[start:], rejected[start:]
    for key, completion, label in (("chosen", chosen, True), ("rejected", rejected, False)):
        completion = _answer(completion, f"{where}, column {key!r}")
        yield {"prompt": prompt, "completion": completion, "label": label}


def message_records(
    row: Record, label_column: str, read: LabelReader, where: str, every_assistant_turn: bool
) -> Iterator[Record]:
    """A conversation -> its last assistant turn, or every one with a label; a message's own label comes first."""
    spot = f"{where}, column 'messages'"
    messages = text_or_messages(row["messages"], spot)
    if isinstance(messages, str):
        raise InputError(spot, messages, "a list of messages", "Write [{'role': 'user', 'content': ...}, ...].")
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise InputError(
            spot, messages, "an assistant turn", "Remove the row, or give the answer the role 'assistant'."
        )
    found = False
    for turn in turns if every_assistant_turn else turns[-1:]:
        own = messages[turn].get("label")
        label = row.get(label_column) if own is None else own
        if label is None and every_assistant_turn:
            continue
        place = f"{where}, column {label_column!r}" if own is None else f"{spot}, message {turn}, label"
        if turn == 0:
            raise InputError(
                spot, messages, "a message before the assistant turn", "Add the prompt, or remove the row."
            )
        yield {
            "prompt": messages[:turn],
            "completion": _answer(messages[turn : turn + 1], f"{spot}, message {turn}"),
            "label": read(label, place),
            "last": turn == turns[-1],
        }
        found = True
    if not found:
        raise InputError(
            f"{where}, column {label_column!r}", None, "a label", "Give the row or one of its turns a label."
        )


def text_or_messages(cell: Any, where: str) -> Any:
    """A cell that holds text or a list of messages, checked; lone surrogates become U+FFFD, with one warning."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        raise InputError(where, cell, "text or a list of messages", "The cell is empty: fill it or remove the row.")
    if isinstance(cell, list):
        if not cell:
            raise InputError(where, cell, "at least one message", "Fill it or remove the row.")
        for i, message in enumerate(cell):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise InputError(f"{where}, message {i}", message, "a dict with a 'role'", "Add the role as text.")
            content = message.get("content")
            if not (isinstance(content, str | list) or (content is None and message.get("tool_calls"))):
                fix = "Give the message its content as text."
                raise InputError(f"{where}, message {i}", message, "a 'content' (or 'tool_calls')", fix)
    elif not isinstance(cell, str):
        raise InputError(where, cell, "text or a list of messages", "Convert the column.")
    return _whole_characters(cell)


def json_cell(cell: Any, where: str) -> Any:
    """A cell that holds JSON as text or already read (tools, chat_template_kwargs)."""
    if not isinstance(cell, str):
        return cell
    try:
        return json.loads(cell)
    except ValueError as error:
        raise InputError(where, cell, "JSON", f"Correct the cell: {error}.") from error


def truncated_cell(cell: Any, where: str) -> bool:
    """Whether the completion was cut off before it ended; an empty cell says no."""
    flag = False if cell is None else as_bool(cell)
    if flag is None:
        raise InputError(where, cell, "true or false", "Say whether the completion was cut off before it ended.")
    return flag


def _answer(completion: Any, where: str) -> Any:
    if isinstance(completion, str):
        if not completion:
            raise InputError(where, completion, "a completion with at least one token", "Remove the row.")
        return completion
    answers = [message for message in completion if message["role"] == "assistant"]
    if not answers:
        raise InputError(where, completion, "an assistant message", "Give the answer the role 'assistant'.")
    if not any(message.get("content") or message.get("tool_calls") for message in answers):
        raise InputError(where, completion, "a completion with at least one token", "Remove the row.")
    return completion


def _shared_start(chosen: Any, rejected: Any, where: str) -> int:
    shorter = min(len(chosen), len(rejected))
    start = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    if chosen == rejected:
        raise InputError(f"{where}, column 'rejected'", rejected, "something else than chosen", "Remove the row.")
    if start == shorter:
        start -= 1
    if isinstance(chosen, str):
        return start - 1 if start and chosen[start - 1] == " " else start
    if start < 1:
        raise InputError(f"{where}, column 'chosen'", chosen, "a first message shared with rejected", "Add a prompt.")
    return start


def _whole_characters(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole_characters(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_characters(item) for item in value]
    if not isinstance(value, str) or value.isascii():
        return value
    whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if whole != value:
        warn_once(logger, "Text with half a character (a lone surrogate) was found; each is read as U+FFFD.")
    return whole
