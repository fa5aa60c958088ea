"""SHP (Stanford Human Preferences): two comments under one post, with their votes.

Kept as the paper's authors keep it: pairs of which one comment has at least twice the votes of the other, and at most
five pairs a post. Which five depends on their texts alone, not on their place in the file.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from fastkto.rows.readers.mapping import pair
from fastkto.rows.readers.tally import LeftOut, Numbered, Record, Tally

KEYS = ("history", "human_ref_A", "human_ref_B", "score_A", "score_B")
LEAST_RATIO = 2
MOST_PAIRS = 5


def fits(record: Record) -> bool:
    """Whether a record is a pair of SHP."""
    return all(key in record for key in KEYS)


def read(records: Iterable[Record], tally: Tally) -> Iterator[Numbered]:
    """Pairs: prompt, chosen and rejected as messages; `source` is the forum."""
    rows: dict[int, Record] = {}
    posts: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        try:
            rows[number] = _row(record)
        except LeftOut as reason:
            tally.add(str(reason), number)
        else:
            posts.setdefault(record["history"], []).append(number)
    for numbers in posts.values():
        for number in sorted(numbers, key=lambda number: _order(rows[number]))[MOST_PAIRS:]:
            del rows[number]
            tally.add(f"beyond {MOST_PAIRS} pairs of one post", number)
    yield from rows.items()


def _row(record: Record) -> Record:
    if any(not isinstance(record.get(key), str) or not record[key].strip() for key in KEYS[:3]):
        raise LeftOut("with an empty question or answer")
    votes: list[Any] = [record.get(key) for key in KEYS[3:]]
    if not all(isinstance(vote, int | float) and vote >= 1 for vote in votes):
        raise LeftOut("with fewer votes than 1")
    if max(votes) < LEAST_RATIO * min(votes):
        raise LeftOut(f"with less than {LEAST_RATIO} times the votes of the other answer")
    first, second = ([{"role": "assistant", "content": record[key]}] for key in KEYS[1:3])
    prompt = [{"role": "user", "content": record["history"]}]
    row = pair(prompt, first, second) if votes[0] > votes[1] else pair(prompt, second, first)
    return row | {"source": str(record.get("domain") or "")}


def _order(row: Record) -> bytes:
    texts = row["chosen"][0]["content"], row["rejected"][0]["content"]
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass")).digest()
