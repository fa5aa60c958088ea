"""y' is always another row's completion, for another prompt: the plain rotation where it can be."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkto.errors import InputError
from fastkto.pairs import pair
from fastkto.pairs.conflicts import check_pairable, conflicts, excess

columns = st.integers(2, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 5), min_size=n, max_size=n), st.lists(st.integers(0, 5), min_size=n, max_size=n)
    )
)


def clash(keys, conversations, i, j):
    return keys[i] == keys[j] or conversations[i] == conversations[j]


@given(columns)
def test_never_a_matched_pair_and_every_completion_once(rows):
    keys, conversations = rows
    try:
        donors = pair(keys, conversations)
    except InputError:
        assert excess(keys, conversations) > 0
        return
    assert sorted(donors) == list(range(len(keys)))
    assert not any(clash(keys, conversations, i, donor) for i, donor in enumerate(donors))
    assert donors == pair(keys, conversations)


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=n, max_size=n)
    )
)
def test_an_error_only_where_no_permutation_is_valid(rows):
    keys, conversations = zip(*rows, strict=True)
    valid = any(
        not any(clash(keys, conversations, i, donor) for i, donor in enumerate(donors))
        for donors in itertools.permutations(range(len(rows)))
    )
    if valid:
        pair(keys, conversations)
    else:
        with pytest.raises(InputError, match=f"micro-batch: got '{len(rows)} rows"):
            pair(keys, conversations)


@given(columns)
def test_plain_rotation_where_it_is_valid(rows):
    keys, conversations = rows
    n = len(keys)
    if not any(clash(keys, conversations, i, i - 1) for i in range(n)):
        assert pair(keys, conversations) == [n - 1, *range(n - 1)]


def test_neighbours_with_one_prompt_are_never_a_pair():
    assert pair([1, 1, 2, 2]) == [2, 3, 0, 1]
    assert pair([1, 1, 2, 2, 3, 3, 4, 4])[:3] == [6, 7, 0]
    assert pair([1, 2, 3, 4], [7, 7, 8, 8]) == [2, 3, 0, 1]


def test_a_matching_where_no_rotation_is_valid():
    keys = [1, 1, 2, 1, 3, 4]
    assert all(any(keys[i] == keys[i - s] for i in range(6)) for s in range(1, 6))
    donors = pair(keys)
    assert sorted(donors) == list(range(6))
    assert all(keys[i] != keys[donor] for i, donor in enumerate(donors))


def test_large_batches_need_no_recursion():
    keys = [i % 2 if i < 1000 else i for i in range(3000)]
    donors = pair(keys)
    assert all(keys[i] != keys[donor] for i, donor in enumerate(donors))


def test_one_row_is_an_error_that_names_the_remedy():
    with pytest.raises(InputError, match=r"1 rows.*max_tokens_per_forward"):
        pair([1])
    assert pair([]) == []


@given(columns)
def test_conflicts_are_counted(rows):
    keys, conversations = rows
    n = range(len(keys))
    assert conflicts(keys, conversations) == [sum(clash(keys, conversations, i, j) for j in n) for i in n]


@given(columns)
def test_the_criterion_is_enough(rows):
    if excess(*rows) == 0:
        pair(*rows)


@pytest.mark.parametrize(
    ("keys", "conversations", "batch_size", "message"),
    [
        ([1], [1], 4, "1 rows with one row"),
        ([1, 1, 1], [1, 2, 3], 4, "3 rows with one prompt"),
        ([1, 2, 3], [1, 1, 1], 4, "3 rows with one conversation"),
        ([1] * 10 + [2, 3], range(12), 4, "12 rows, 10 of them with one prompt"),
        ([1, 2, 1, 2, 1, 2], range(6), 3, "an even"),
        ([1, 2], [1, 2], 1, "max_tokens_per_forward"),
    ],
)
def test_data_that_cannot_be_paired(keys, conversations, batch_size, message):
    with pytest.raises(InputError, match=message):
        check_pairable(keys, list(conversations), batch_size)


@pytest.mark.parametrize(
    ("keys", "batch_size", "world_size", "rows"),
    [
        ([1, 2, 3, 4], 4, 1, 4),
        ([1, 2, 3, 4, 5], 4, 1, 6),  # a last row alone is never paired with itself
        ([1, 2, 3, 4, 5, 6], 4, 1, 6),
        ([1, 1, 2], 4, 1, 4),
        ([1, 1, 1, 2, 3], 8, 1, 6),
        ([1, 2, 3, 4, 5], 2, 2, 8),
        ([1, 2], 4, 3, 12),
    ],
)
def test_rows_of_an_epoch(keys, batch_size, world_size, rows):
    assert check_pairable(keys, list(range(len(keys))), batch_size, world_size=world_size) == rows
