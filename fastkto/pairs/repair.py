"""Rows change places between batches until every batch can be paired."""

import random
from collections.abc import Iterator, Sequence

from fastkto.pairs.conflicts import conflicts, excess, unpairable
from fastkto.pairs.matching import find_donors

KICKS = 200


def make_pairable(
    batches: list[list[int]],
    prompt_keys: Sequence[int],
    conversations: Sequence[int],
    classes: Sequence[bool] | None = None,
) -> None:
    """Swap rows between `batches`, in place, until each can be paired; batches that can be are left alone.

    A row that conflicts with more than half of its batch goes to the nearest batch that has room for it, in exchange
    for a row that lowers the sum of both excesses: that sum falls with every swap, so this ends. A partner of the same
    class (`classes[row]`) is preferred. Where no swap helps, rows trade places by chance (`KICKS` times at most, from a
    fixed seed) and the search goes on. Errors: `InputError` where that does not help either.
    """

    def columns(batch: list[int]) -> tuple[list[int], list[int]]:
        return [prompt_keys[row] for row in batch], [conversations[row] for row in batch]

    def conflict(row: int, other: int) -> bool:
        return prompt_keys[row] == prompt_keys[other] or conversations[row] == conversations[other]

    def swap(here: int, same_class: bool, full: bool) -> int | None:
        """Make the nearest swap that helps batch `here`; where it went. `full`: try every row and every batch."""
        batch = batches[here]
        counts = conflicts(*columns(batch))
        places = {i if full else prompt_keys[row]: i for i, row in enumerate(batch) if counts[i] > len(batch) // 2}
        for there in _nearest(here, len(batches)):
            other = batches[there]
            for i in places.values():
                row = batch[i]
                clashes = [conflict(row, item) for item in other]
                if sum(clashes) >= len(other) // 2 + full:
                    continue
                for j, item in enumerate(other):
                    if clashes[j] or (same_class and classes and classes[row] != classes[item]):
                        continue
                    batch[i], other[j] = item, row
                    after = excess(*columns(batch)), excess(*columns(other))
                    if sum(after) < misses[here] + misses[there]:
                        misses[here], misses[there] = after
                        return there
                    batch[i], other[j] = row, item
        return None

    misses = [excess(*columns(batch)) for batch in batches]
    waiting = [i for i in reversed(range(len(batches))) if misses[i]]
    tries = [(True, False)] * (classes is not None) + [(False, False), (False, True)]
    chance, kicks = random.Random(0), KICKS
    while waiting:
        here = waiting.pop()
        while misses[here]:
            there = next((found for how in tries if (found := swap(here, *how)) is not None), None)
            if there is not None:
                waiting += [there] * (misses[there] > 0)
            elif find_donors(*columns(batches[here])):
                misses[here] = 0  # the criterion asks for more than a pairing needs
            elif len(batches) > 1 and (kicks := kicks - 1):
                there = chance.choice([i for i in range(len(batches)) if i != here])
                i, j = chance.randrange(len(batches[here])), chance.randrange(len(batches[there]))
                batches[here][i], batches[there][j] = batches[there][j], batches[here][i]
                misses[here], misses[there] = (excess(*columns(batches[k])) for k in (here, there))
                waiting += [there] * (misses[there] > 0)
            else:
                raise unpairable(len(prompt_keys), len(batches[0]))


def _nearest(here: int, batches: int) -> Iterator[int]:
    for distance in range(1, batches):
        if here + distance < batches:
            yield here + distance
        if here >= distance:
            yield here - distance
