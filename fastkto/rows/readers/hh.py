"""HH (helpful and harmless): two transcripts a record, `Human:` and `Assistant:` in turns, as one text each.

The whole last turn of the assistant is the answer on both sides, and what comes before is the prompt, as messages. That
is how the authors of KTO read it; the common beginning of the two texts can end in the middle of a word.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from fastkto.rows.readers.mapping import pair
from fastkto.rows.readers.tally import LeftOut, Numbered, Record, Tally, one_by_one

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def fits(record: Record) -> bool:
    """Whether both sides are transcripts that begin with a turn."""
    sides = (record.get("chosen"), record.get("rejected"))
    return all(isinstance(side, str) and _TURN.match(side) and "\n\nAssistant:" in side for side in sides)


def read(records: Iterable[Record], tally: Tally) -> Iterator[Numbered]:
    """Pairs: prompt, chosen and rejected as messages."""
    return one_by_one(records, _row, tally)


def _row(record: Record) -> Record:
    chosen, rejected = (_turns(record.get(side)) for side in ("chosen", "rejected"))
    if any(turns[-1]["role"] != "assistant" for turns in (chosen, rejected)):
        raise LeftOut("that do not end with an answer")
    if chosen[:-1] != rejected[:-1]:
        raise LeftOut("whose two sides differ before the last turn")
    return pair(chosen[:-1], chosen[-1:], rejected[-1:])


def _turns(text: Any) -> list[Record]:
    if not isinstance(text, str) or not _TURN.match(text):
        raise LeftOut("that are not transcripts of Human and Assistant")
    _, *parts = _TURN.split(text)
    turns = [
        {"role": _ROLES[name], "content": content.strip()}
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[0]["role"] != "user" or any(one["role"] == two["role"] for one, two in pairwise(turns)):
        raise LeftOut("in which the two do not take turns")
    return turns
