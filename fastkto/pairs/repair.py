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
        keys = {prompt_keys[batch[i]] for i in places.values()}
        crowd = crowds.setdefault(keys.pop(), _Crowd()) if len(keys) == 1 and not full else _Crowd()
        for there in crowd.nearest(here, len(batches)):
            other = batches[there]
            if not full and all(crowded(batch[i], other) for i in places.values()):
                crowd.add(there)
                continue
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

    def crowded(row: int, other: list[int]) -> bool:
        return sum(prompt_keys[row] == prompt_keys[item] for item in other) >= len(other) // 2

    crowds: dict[int, _Crowd] = {}
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


class _Crowd:
    """The batches that have no room for a prompt, side by side in sorted data: a search passes over each run of them
    in one step, and all searches together take as long as there are batches."""

    def __init__(self) -> None:
        self.right: dict[int, int] = {}
        self.left: dict[int, int] = {}

    def add(self, batch: int) -> None:
        """Pass over `batch` from now on."""
        self.right[batch], self.left[batch] = batch + 1, batch - 1

    def nearest(self, here: int, batches: int) -> Iterator[int]:
        """The batches with room, the nearest to `here` first, of two equally near the later one."""
        right, left = _end(self.right, here + 1), _end(self.left, here - 1)
        while right < batches or left >= 0:
            if right < batches and (left < 0 or right - here <= here - left):
                yield right
                right = _end(self.right, right + 1)
            else:
                yield left
                left = _end(self.left, left - 1)


def _end(steps: dict[int, int], start: int) -> int:
    """Where a walk along `steps` ends; the steps that it took are shortened to one."""
    end = start
    while end in steps:
        end = steps[end]
    while start != end:
        steps[start], start = end, steps[start]
    return end
