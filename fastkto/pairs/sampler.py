"""The order of a data set's rows in an epoch: any strategy, and every batch of it can be paired."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from fastkto.config import SAMPLING_STRATEGIES
from fastkto.errors import InputError
from fastkto.pairs.conflicts import capacity, check_pairable, unpairable
from fastkto.pairs.repair import make_pairable

MEGABATCH = 50


class PairableSampler(Sampler[int]):
    """Row indices of an epoch, to be cut into batches of `batch_size`, every one of which `pair` can pair.

    `strategy`: "random" (`torch.randperm`), "sequential", "stratified" (every batch holds both classes in about the
    data's proportion) or "group_by_length" (needs `lengths`; batches of like lengths, the longest first). An order
    whose batches are fine is kept as it is; otherwise rows change places with the nearest batch that can take them.
    Every row appears in every epoch. `refilled` rows appear once more: in a last batch that would hold one row or
    could not be paired, and up to whole batches for each of `world_size` ranks. The order is a function of
    (seed, epoch); with `fixed_batches` (reference cached on disk) the batches are those of epoch 0 and epochs shuffle
    their order, a short one last. Without `kl` (apo_zero_unpaired) nothing is paired: no row moves, none is refilled.
    Errors: `InputError`, those of `check_pairable` included.
    """

    def __init__(
        self,
        prompt_keys: Sequence[int],
        conversations: Sequence[int],
        labels: Sequence[bool],
        batch_size: int,
        *,
        strategy: str = "random",
        lengths: Sequence[int] | None = None,
        seed: int = 0,
        fixed_batches: bool = False,
        world_size: int = 1,
        kl: bool = True,
    ) -> None:
        if strategy not in SAMPLING_STRATEGIES:
            fix = "Correct the name."
            raise InputError("train_sampling_strategy", strategy, f"one of {SAMPLING_STRATEGIES}", fix)
        if strategy == "group_by_length" and lengths is None:
            raise InputError("lengths", None, "a length for every row with group_by_length", "Pass them.")
        # `[:]` reads a column of a `datasets.Dataset` once; it would decode a row at every index
        self.prompt_keys, self.conversations, self.labels = prompt_keys[:], conversations[:], labels[:]
        self.length, self.kl = len(self.prompt_keys), kl
        if kl:
            self.length = check_pairable(self.prompt_keys, self.conversations, batch_size, world_size=world_size)
        self.refilled = self.length - len(self.prompt_keys)
        self.batch_size, self.strategy = batch_size, strategy
        self.lengths = lengths[:] if lengths is not None else None
        self.seed, self.fixed_batches, self.epoch = seed, fixed_batches, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        batches = self._batches(0 if self.fixed_batches else self.epoch)
        if self.fixed_batches and self.strategy != "sequential":
            batches = _shuffle_whole(batches, self.batch_size, _generator(self.seed, self.epoch, "order"))
        return (row for batch in batches for row in batch)

    def _batches(self, epoch: int) -> list[list[int]]:
        generator = _generator(self.seed, epoch, "rows")
        rows = len(self.prompt_keys)
        if self.strategy == "sequential":
            order = list(range(rows))
        elif self.strategy == "stratified":
            order = _stratified(self.labels, self.batch_size, generator)
        else:
            order = torch.randperm(rows, generator=generator).tolist()
        if self.lengths is not None and self.strategy == "group_by_length":
            order = _by_length(order, self.lengths, self.batch_size)
        order += self._refill(order)
        batches = [order[i : i + self.batch_size] for i in range(0, self.length, self.batch_size)]
        if self.kl:
            classes = self.labels if self.strategy == "stratified" else None
            make_pairable(batches, self.prompt_keys, self.conversations, classes)
        if self.strategy == "group_by_length":
            longest = batches.pop(0)
            batches = [longest, *_shuffle_whole(batches, self.batch_size, generator)]
        return batches

    def _refill(self, order: list[int]) -> list[int]:
        """Rows from the beginning of `order`, none of which makes a prompt too common for the epoch."""
        keys, conversations = Counter(self.prompt_keys), Counter(self.conversations)
        most = capacity(self.length, self.batch_size)
        refill: list[int] = []
        while len(refill) < self.refilled:
            before = len(refill)
            for row in order:
                key, conversation = self.prompt_keys[row], self.conversations[row]
                if len(refill) < self.refilled and keys[key] < most and conversations[conversation] < most:
                    keys[key] += 1
                    conversations[conversation] += 1
                    refill.append(row)
            if len(refill) == before:
                raise unpairable(len(order), self.batch_size)
        return refill


def _generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _shuffle_whole(batches: list[list[int]], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    whole = [batch for batch in batches if len(batch) == batch_size]
    order = torch.randperm(len(whole), generator=generator).tolist()
    return [whole[i] for i in order] + [batch for batch in batches if len(batch) < batch_size]


def _stratified(labels: Sequence[bool], batch_size: int, generator: torch.Generator) -> list[int]:
    """Both classes spread evenly over the epoch, then shuffled within each batch, so that no pattern pairs them."""
    spread: list[tuple[float, int]] = []
    for label in (True, False):
        members = [row for row, own in enumerate(labels) if bool(own) == label]
        order = torch.randperm(len(members), generator=generator).tolist()
        spread += [((place + 0.5) / len(members), members[i]) for place, i in enumerate(order)]
    rows = [row for _, row in sorted(spread)]
    result: list[int] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        result += [batch[i] for i in torch.randperm(len(batch), generator=generator).tolist()]
    return result


def _by_length(order: list[int], lengths: Sequence[int], batch_size: int) -> list[int]:
    """Longest first within runs of up to `MEGABATCH` batches, and the longest row of all first."""
    size = batch_size * max(1, min(MEGABATCH, len(order) // (batch_size * 4)))
    runs = [sorted(order[i : i + size], key=lambda row: -lengths[row]) for i in range(0, len(order), size)]
    runs.sort(key=lambda run: -lengths[run[0]])
    return [row for run in runs for row in run]
