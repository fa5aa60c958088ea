"""A stream of rows in an order in which every batch can be paired, held back no longer than needed."""

import itertools
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from fastkto.errors import InputError
from fastkto.losses.kto import check_rows_to_pair
from fastkto.pairs.conflicts import conflicts

Row = TypeVar("Row", bound=Mapping[str, Any])
logger = logging.getLogger(__name__)

HELD_BACK = 64


def pairable(rows: Iterable[Row], batch_size: int, *, world_size: int = 1) -> Iterator[Row]:
    """Tokenised `rows`, lazily, in an order of which every batch of `batch_size` can be paired.

    An order that is fine is kept. A row that would conflict with more than half of its batch waits for the next one
    (at most `HELD_BACK` batches of rows wait). At the end, what is left is completed with rows seen before, each at
    most once more and logged: a last batch of one row, one with too many rows of one prompt, and with `world_size`
    > 1 the last round of batches. Errors: `InputError` for a stream of no row, one row or one prompt, and where one
    prompt is too common.
    """
    check_rows_to_pair("batch_size", batch_size)
    waiting: list[Row] = []
    seen: deque[Row] = deque(maxlen=HELD_BACK * batch_size)
    batch: list[Row] = []
    emitted = 0

    def fits(batch: list[Row], row: Row, size: int) -> bool:
        return _most_conflicts([*batch, row]) <= size // 2

    def take(source: list[Row], batch: list[Row], size: int) -> list[Row]:
        """Move rows that fit from `source` to `batch` until it holds `size`; what stays behind."""
        left = []
        for row in source:
            if len(batch) < size and fits(batch, row, size):
                batch.append(row)
            else:
                left.append(row)
        return left

    for row in rows:
        if fits(batch, row, batch_size):
            batch.append(row)
        else:
            waiting.append(row)
            if len(waiting) > HELD_BACK * batch_size:
                raise _too_common(len(waiting), batch_size)
        while len(batch) == batch_size:
            yield from batch
            seen.extend(batch)
            emitted, batch = emitted + 1, []
            waiting = take(waiting, batch, batch_size)

    rest = batch + waiting
    if not rest and not emitted:
        raise InputError("dataset", "an empty stream", "at least two rows", "Check the source and its filters.")
    everything = [*seen, *rest]
    pool, refilled = everything, 0
    while rest or emitted % world_size:
        size = min(batch_size, max(len(rest), 2 * _most_conflicts(rest)))
        batch = []
        rest = take(rest, batch, size)
        own = len(batch)
        pool = take(pool, batch, size)
        if len(batch) < size:
            raise _too_common(own + len(rest), batch_size)
        while world_size > 1 and len(batch) < batch_size:
            before = len(batch)
            take(everything, batch, batch_size)
            if len(batch) == before:
                raise _too_common(len(everything), batch_size)
        refilled += len(batch) - own
        yield from batch
        emitted += 1
    if refilled:
        logger.info("%d rows of the stream are seen twice, so that its last batches can be paired", refilled)


class PairableStream(IterableDataset):
    """A stream of tokenised rows in `pairable` order; `DataLoader(batch_size=batch_size)` cuts the batches."""

    def __init__(self, rows: Iterable[Any], batch_size: int, *, world_size: int = 1) -> None:
        self.rows, self.batch_size, self.world_size = rows, batch_size, world_size

    def __iter__(self) -> Iterator[Any]:
        rows = iter(self.rows)
        first = list(itertools.islice(rows, 1))
        if not first and (worker := get_worker_info()) and worker.id > 0:
            return iter(())  # more workers than the source has shards
        return pairable(itertools.chain(first, rows), self.batch_size, world_size=self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Hand the epoch to the stream below, whose shuffle buffer depends on it."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)


def _most_conflicts(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many of the rows share the prompt or the conversation of one of them, at most."""
    return max(conflicts([row["prompt_key"] for row in rows], [row["conversation"] for row in rows]), default=0)


def _too_common(rows: int, batch_size: int) -> InputError:
    return InputError(
        "dataset",
        f"a stream in which {rows} rows wait for a batch where another prompt can be paired with them",
        f"at least two prompts, and at most half of each batch of {batch_size} with one prompt or conversation",
        "Shuffle the source, remove some of the rows that share a prompt, or use an even batch size.",
    )
