"""One source row -> the (prompt, completion, label) records in it: a pure function per shape of feedback data."""

import logging
from collections.abc import Iterator
from typing import Any

from fastkto.rows.labels import LabelReader, as_bool, is_missing, warn_once
from fastkto.rows.shapes.decision import PICTURES, Columns, value_at
from fastkto.rows.shapes.faults import NO_ANSWER, NO_LABEL, NO_PROMPT, ONE_ANSWER, Unusable
from fastkto.rows.shapes.messages import holds, json_cell, text_or_messages

logger = logging.getLogger(__name__)
Record = dict[str, Any]
ASKERS = ("user", "human", "tool", "function", "ipython")


def completion_record(row: Record, columns: Columns, read: LabelReader, where: str, chat: bool) -> Iterator[Record]:
    """prompt + completion + label: text, or lists of messages. With `chat` text becomes a turn of each."""
    prompt_place, completion_place = f"{where}, column {columns.prompt!r}", f"{where}, column {columns.completion!r}"
    label = read(value_at(row, str(columns.label)), f"{where}, column {columns.label!r}")
    prompt = text_or_messages(value_at(row, str(columns.prompt)), prompt_place, NO_PROMPT)
    completion = text_or_messages(value_at(row, str(columns.completion)), completion_place, NO_ANSWER)
    if chat:
        prompt, completion = _turn(prompt, "user"), _turn(completion, "assistant")
    if type(prompt) is not type(completion):
        raise Unusable(
            completion_place,
            completion,
            "the same kind as the prompt: both text or both lists of messages",
            "Write the completion as [{'role': 'assistant', 'content': ...}], or the prompt as text.",
        )
    yield {"prompt": prompt, "completion": _answer(completion, completion_place), "label": label}


def paired_records(row: Record, columns: Columns, where: str, chat: bool) -> Iterator[Record]:
    """chosen + rejected -> a desirable and an undesirable record; without a prompt, what both begin with is one."""
    chosen, rejected = (
        text_or_messages(row.get(key), f"{where}, column {key!r}", ONE_ANSWER) for key in ("chosen", "rejected")
    )
    if type(chosen) is not type(rejected):
        fix = "Write both the same way."
        raise Unusable(f"{where}, column 'rejected'", rejected, "the same kind as chosen", fix)
    if chosen == rejected:
        fix = "The pair is left out: one answer under both labels says nothing."
        raise Unusable(f"{where}, column 'rejected'", rejected, "something else than chosen", fix, ONE_ANSWER)
    prompt = None
    if columns.prompt is not None:
        place = f"{where}, column {columns.prompt!r}"
        prompt = text_or_messages(value_at(row, columns.prompt), place, NO_PROMPT)
    if chat and isinstance(chosen, str) and prompt is not None:
        prompt, chosen, rejected = _turn(prompt, "user"), _turn(chosen, "assistant"), _turn(rejected, "assistant")
    if isinstance(prompt, list) and isinstance(chosen, str):
        raise Unusable(f"{where}, column {columns.prompt!r}", prompt, "text, as chosen is", "Write both the same way.")
    if prompt is None or (isinstance(prompt, str) and isinstance(chosen, list)):
        start = _shared_start(chosen, rejected, where)
        prompt, chosen, rejected = chosen[:start], chosen[start:], rejected[start:]
        if chat:
            prompt, chosen, rejected = _turn(prompt, "user"), _turn(chosen, "assistant"), _turn(rejected, "assistant")
    for key, completion, label in (("chosen", chosen, True), ("rejected", rejected, False)):
        completion = _answer(completion, f"{where}, column {key!r}", ONE_ANSWER)
        yield {"prompt": prompt, "completion": completion, "label": label}


def message_records(
    row: Record, columns: Columns, read: LabelReader, where: str, every_assistant_turn: bool
) -> Iterator[Record]:
    """A conversation -> its last assistant turn, or every one with a label; a message's own label comes first.

    With every turn, an answer that nobody has asked for yet (a greeting) is context only, unless it has a label itself.
    """
    spot = f"{where}, column {columns.messages!r}"
    messages = text_or_messages(value_at(row, str(columns.messages)), spot, NO_PROMPT)
    if isinstance(messages, str):
        raise Unusable(spot, messages, "a list of messages", "Write [{'role': 'user', 'content': ...}, ...].")
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        fix = "Remove the row, or give the answer the role 'assistant'."
        raise Unusable(spot, messages, "an assistant turn", fix, NO_ANSWER)
    asked = next((i for i, message in enumerate(messages) if message["role"] in ASKERS), len(messages))
    if not every_assistant_turn and any(not is_missing(messages[turn].get("label")) for turn in turns[:-1]):
        warn_once(
            logger, "Turns before the last have labels, which are not used: --every_assistant_turn true takes them."
        )
    records = []
    for turn in turns if every_assistant_turn else turns[-1:]:
        own = messages[turn].get("label")
        label = value_at(row, str(columns.label)) if is_missing(own) else own
        greets = turn < asked and (turn == 0 or is_missing(own))
        if every_assistant_turn and (greets or is_missing(label)):
            continue
        if turn == 0:
            fix = "Add the prompt, or remove the row."
            raise Unusable(spot, messages, "a message before the assistant turn", fix, NO_PROMPT)
        place = f"{where}, column {columns.label!r}" if is_missing(own) else f"{spot}, message {turn}, label"
        records.append(
            {
                "prompt": messages[:turn],
                "completion": _answer(messages[turn : turn + 1], f"{spot}, message {turn}"),
                "label": read(label, place),
                "last": turn == turns[-1],
            }
        )
    if not records:
        fix = "Give the row or one of its turns a label, or leave out all such rows with --on_unrated drop."
        raise Unusable(f"{where}, column {columns.label!r}", None, "a label", fix, NO_LABEL)
    yield from records


def carried_cells(row: Record, columns: Columns, where: str) -> Record:
    """tools, chat_template_kwargs and truncated, as far as there are such columns."""
    for column in PICTURES:
        if holds(row.get(column)):
            fix = "Remove the row, or the column to train on the text alone."
            raise Unusable(f"{where}, column {column!r}", row[column], "no pictures", fix)
    cells: Record = {}
    for column in columns.carried:
        place = f"{where}, column {column!r}"
        cell = row.get(column)
        cells[column] = truncated_cell(cell, place) if column == "truncated" else json_cell(cell, place)
    return cells


def truncated_cell(cell: Any, where: str) -> bool:
    """Whether the completion was cut off before it ended; an empty cell says no."""
    flag = False if is_missing(cell) else as_bool(cell)
    if flag is None:
        raise Unusable(where, cell, "true or false", "Say whether the completion was cut off before it ended.")
    return flag


def _turn(content: Any, role: str) -> Any:
    return [{"role": role, "content": content}] if isinstance(content, str) else content


def _answer(completion: Any, where: str, kind: str = NO_ANSWER) -> Any:
    if isinstance(completion, str):
        if not completion:
            fix = "The cell is empty: fill it, or leave out all such rows with --on_empty drop."
            raise Unusable(where, completion, "a completion with at least one token", fix, kind)
        return completion
    if not any(message["role"] == "assistant" for message in completion):
        raise Unusable(where, completion, "an assistant message", "Give the answer the role 'assistant'.")
    return completion


def _shared_start(chosen: Any, rejected: Any, where: str) -> int:
    shorter = min(len(chosen), len(rejected))
    start, beyond = 0, shorter + 1  # equal up to start, not up to beyond: halved, since a text may be megabytes long
    while beyond - start > 1:
        middle = (start + beyond) // 2
        start, beyond = (middle, beyond) if chosen[:middle] == rejected[:middle] else (start, middle)
    if start == shorter:
        start -= 1
    if isinstance(chosen, str):
        return start - 1 if start and chosen[start - 1] == " " else start
    if start < 1:
        fix = "Add a prompt."
        raise Unusable(f"{where}, column 'chosen'", chosen, "a first message shared with rejected", fix, NO_PROMPT)
    return start
