"""Every row in every epoch, every batch pairable, the same for the same seed and epoch, whatever the strategy."""

import time
from collections import Counter

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from fastkto.config import SAMPLING_STRATEGIES
from fastkto.errors import InputError
from fastkto.pairs import PairableSampler, pair
from fastkto.pairs.repair import make_pairable


def cut(rows, size):
    rows = list(rows)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def distinct(n, batch_size, **options):
    labels = [i % 3 == 0 for i in range(n)]
    return PairableSampler(list(range(n)), list(range(n)), labels, batch_size, **options)


@st.composite
def samplers(draw):
    n = draw(st.integers(2, 50))
    keys = draw(st.lists(st.integers(0, n // 2), min_size=n, max_size=n))
    labels = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    options = {
        "strategy": draw(st.sampled_from(SAMPLING_STRATEGIES)),
        "lengths": draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)),
        "fixed_batches": draw(st.booleans()),
        "world_size": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 9)),
    }
    return keys, labels, draw(st.integers(2, 9)), options


@settings(deadline=None)
@given(samplers(), st.integers(0, 3))
def test_every_row_every_epoch_in_batches_that_can_be_paired(case, epoch):
    keys, labels, batch_size, options = case
    n = len(keys)
    try:
        sampler = PairableSampler(keys, list(range(n)), labels, batch_size, **options)
    except InputError:
        return
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert {*order} == {*range(n)}
    assert len(order) == len(sampler) == n + sampler.refilled
    if options["world_size"] == 1:
        assert max(Counter(order).values()) <= 2
    else:
        assert len(order) % (batch_size * options["world_size"]) == 0
    for batch in cut(order, batch_size):
        pair([keys[row] for row in batch])
    again = PairableSampler(keys, list(range(n)), labels, batch_size, **options)
    again.set_epoch(epoch)
    assert list(again) == order


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4, 8, 16]))
def test_conversations_of_many_turns(seed, batch_size):
    import random

    random = random.Random(seed)
    conversations = [c for c in range(20) for _ in range(random.randint(1, 8))]
    keys = [-1 if random.random() < 0.3 else i for i in range(len(conversations))]
    try:
        sampler = PairableSampler(keys, conversations, [True] * len(keys), batch_size, strategy="sequential")
    except InputError:
        return
    for batch in cut(sampler, batch_size):
        pair([keys[row] for row in batch], [conversations[row] for row in batch])


def test_an_order_that_is_fine_is_kept():
    assert list(distinct(10, 4, strategy="sequential")) == list(range(10))
    unpaired = PairableSampler([0, 0, 1, 1, 2, 2, 3, 3], list(range(8)), [True, False] * 4, 4, strategy="sequential")
    assert list(unpaired) == list(range(8))


@pytest.mark.parametrize("prompts", [3, 8, 8000])
def test_A26_sorted_rows_in_sequence_take_time_that_grows_with_their_number(prompts):
    rows = 32_000
    keys = [i * prompts // rows for i in range(rows)]
    start = time.process_time()
    order = list(PairableSampler(keys, list(range(rows)), [True] * rows, 8, strategy="sequential"))
    assert time.process_time() - start < 4
    assert sorted(order) == list(range(rows))
    for batch in cut(order, 8):
        pair([keys[row] for row in batch])


def test_one_conflict_moves_two_rows():
    keys = [0, 1, 2, 3, 4, 4, 4, 5, 6, 7, 8, 9]
    order = list(PairableSampler(keys, list(range(12)), [True] * 12, 4, strategy="sequential"))
    assert sum(row != place for place, row in enumerate(order)) == 2


def test_random_differs_by_epoch_and_by_seed():
    sampler = distinct(50, 8)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(distinct(50, 8, seed=1)) != first
    assert list(distinct(50, 8, seed=1)) != list(sampler)


def test_a_last_row_alone_is_refilled():
    sampler = distinct(9, 4)
    assert (sampler.refilled, len(sampler)) == (1, 10)
    *_, last = cut(sampler, 4)
    assert len({*last}) == 2


@pytest.mark.parametrize("strategy", SAMPLING_STRATEGIES)
def test_fixed_batches_keep_their_composition(strategy):
    sampler = distinct(30, 4, strategy=strategy, lengths=list(range(30)), fixed_batches=True)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(cut(sampler, 4))
    assert len({frozenset(map(tuple, batches)) for batches in epochs}) == 1
    assert len({tuple(batches[-1]) for batches in epochs}) == 1
    assert len(epochs[0][-1]) == 2
    assert len({str(batches) for batches in epochs}) == (1 if strategy == "sequential" else 3)


@pytest.mark.parametrize("n", [8, 9, 15, 16, 17])
def test_ranks_get_equal_batches_and_nothing_is_added_to_them(n):
    sampler = distinct(n, 4, world_size=2)
    ranks = [list(BatchSamplerShard(BatchSampler(sampler, 4, drop_last=False), 2, rank)) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [-(-n // 8)] * 2
    together = [batch for pair_of_batches in zip(*ranks, strict=True) for batch in pair_of_batches]
    assert together == cut(sampler, 4)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_stratified_batches_hold_the_datas_proportion(share):
    n = 400
    labels = [i < n * share for i in range(n)]
    sampler = PairableSampler(list(range(n)), list(range(n)), labels, 8, strategy="stratified")
    counts = {sum(labels[row] for row in batch) for batch in cut(sampler, 8)}
    assert counts <= {int(8 * share), int(8 * share) + 1}


def test_stratified_repairs_keep_the_classes():
    n = 200
    labels = [i % 4 == 0 for i in range(n)]
    keys = [-1 if i % 5 < 2 else i for i in range(n)]
    sampler = PairableSampler(keys, list(range(n)), labels, 8, strategy="stratified")
    assert {sum(labels[row] for row in batch) for batch in cut(sampler, 8)} == {2}


def test_like_lengths_share_batches_and_the_longest_come_first():
    n = 800
    lengths = [(i * 7919) % 1000 + 1 for i in range(n)]
    sampler = distinct(n, 8, strategy="group_by_length", lengths=lengths)
    batches = [[lengths[row] for row in batch] for batch in cut(sampler, 8)]
    assert max(lengths) in batches[0]
    padding = sum(max(batch) * len(batch) for batch in batches) / sum(lengths)
    assert padding < 1.1
    assert [max(batch) for batch in batches] != sorted(map(max, batches), reverse=True)


def test_without_kl_nothing_is_paired_or_refilled():
    sampler = PairableSampler([1, 1, 1], [1, 1, 1], [True] * 3, 1, strategy="sequential", kl=False)
    assert list(sampler) == [0, 1, 2]


def test_bad_arguments():
    with pytest.raises(InputError, match="train_sampling_strategy: got 'shuffled'"):
        distinct(4, 2, strategy="shuffled")
    with pytest.raises(InputError, match="lengths"):
        distinct(4, 2, strategy="group_by_length")
    with pytest.raises(InputError, match="4 rows, too many"):
        make_pairable([[0, 1, 2, 3]], [1, 1, 1, 2], [0, 1, 2, 3])
