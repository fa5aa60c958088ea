"""A stream in pairable order: nothing lost, nothing matched, read no further than needed."""

import itertools
import logging
from collections import Counter

import pytest
from datasets import IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fastkto.errors import InputError
from fastkto.pairs import PairableStream, pair
from fastkto.pairs.stream import pairable


def rows_of(keys, conversations=None):
    conversations = range(len(keys)) if conversations is None else conversations
    return [
        {"prompt_key": k, "conversation": c, "i": i} for i, (k, c) in enumerate(zip(keys, conversations, strict=True))
    ]


def check(order, n, batch_size):
    assert {row["i"] for row in order} == {*range(n)}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        pair([row["prompt_key"] for row in batch], [row["conversation"] for row in batch])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), min_size=2, max_size=50),
    st.integers(2, 8),
    st.integers(1, 3),
)
def test_nothing_is_lost_and_every_batch_can_be_paired(columns, batch_size, world_size):
    rows = rows_of(*zip(*columns, strict=True))
    try:
        order = list(pairable(rows, batch_size, world_size=world_size))
    except InputError:
        return
    check(order, len(rows), batch_size)
    assert order == list(pairable(iter(rows), batch_size, world_size=world_size))
    if world_size == 1:
        assert max(Counter(row["i"] for row in order).values()) <= 2
    else:
        assert len(order) % (batch_size * world_size) == 0


@given(st.lists(st.integers(0, 9), min_size=4, max_size=40).filter(lambda k: 4 * max(Counter(k).values()) <= len(k)))
@settings(deadline=None)
def test_no_error_where_no_prompt_is_common(keys):
    check(list(pairable(rows_of(keys), 4)), len(keys), 4)


def test_an_order_that_is_fine_is_kept():
    rows = rows_of([*range(10)])
    assert list(pairable(rows, 4)) == rows
    paired = rows_of([0, 0, 1, 1, 2, 2, 3, 3])
    assert list(pairable(paired, 4)) == paired


def test_a_crowd_of_one_prompt_waits_its_turn():
    rows = rows_of([0, 0, 0, 0, 1, 2, 3, 4])
    assert [row["i"] for row in pairable(rows, 4)] == [0, 1, 4, 5, 2, 3, 6, 7]


def test_read_lazily():
    read = []

    def source():
        for row in rows_of([*range(100)]):
            read.append(row)
            yield row

    list(itertools.islice(pairable(source(), 4), 4))
    assert len(read) == 4


def test_a_last_row_alone_is_refilled_and_said(caplog):
    with caplog.at_level(logging.INFO):
        order = list(pairable(rows_of([*range(5)]), 4))
    assert [row["i"] for row in order] == [0, 1, 2, 3, 4, 0]
    assert "1 rows of the stream are seen twice" in caplog.text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "an empty stream"),
        ([1], "at least two prompts"),
        ([1] * 5, "at least two prompts"),
        ([1] * 9 + [2], "half"),
    ],
)
def test_streams_that_cannot_be_paired(keys, message):
    with pytest.raises(InputError, match=message):
        list(pairable(rows_of(keys), 4))


def test_an_endless_stream_of_one_prompt_stops():
    endless = ({"prompt_key": 0, "conversation": i} for i in itertools.count())
    with pytest.raises(InputError, match="at least two prompts"):
        next(pairable(endless, 2))


def test_a_batch_of_one_is_refused():
    with pytest.raises(InputError, match="max_tokens_per_forward"):
        next(pairable(rows_of([1, 2]), 1))


def test_more_workers_than_shards():
    data = IterableDataset.from_generator(lambda: iter(rows_of([*range(10)])))
    loader = DataLoader(PairableStream(data, 4), batch_size=4, collate_fn=list, num_workers=2)
    assert [[row["i"] for row in batch] for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_data_loader_cuts_its_batches_and_epochs_reach_the_source():
    class Source(list):
        epoch = None

        def set_epoch(self, epoch):
            self.epoch = epoch

    source = Source(rows_of([0, 0, 0, 1, 2, 3]))
    stream = PairableStream(source, 4)
    stream.set_epoch(3)
    assert source.epoch == 3
    PairableStream(source[:], 4).set_epoch(3)
    for _ in range(2):
        sizes = [len(batch) for batch in DataLoader(stream, batch_size=4, collate_fn=list)]
        assert sizes == [4, 2]
