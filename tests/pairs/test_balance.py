"""The paper's rule for the weights, and how often a micro-batch holds one class."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkto.errors import InputError
from fastkto.pairs.balance import (
    auto_desirable_weight,
    batch_size_for,
    obeys_rule,
    one_class_share,
    one_class_share_of,
    weight_range,
)

counts = st.integers(1, 10**6)
weights = st.floats(0.01, 100)


@given(counts, counts, weights)
def test_the_rule_holds_inside_the_range_only(n_desirable, n_undesirable, weight):
    low, high = weight_range(n_desirable, n_undesirable, weight)
    for desirable_weight, ratio in ((low, 1), (high, 1.5)):
        assert desirable_weight * n_desirable / (weight * n_undesirable) == pytest.approx(ratio)
        assert obeys_rule(n_desirable, n_undesirable, desirable_weight, weight)
    assert not obeys_rule(n_desirable, n_undesirable, 0.99 * low, weight)
    assert not obeys_rule(n_desirable, n_undesirable, 1.01 * high, weight)


@given(counts, counts, weights)
def test_auto_solves_the_rule(n_desirable, n_undesirable, weight):
    assert obeys_rule(n_desirable, n_undesirable, auto_desirable_weight(n_desirable, n_undesirable, weight), weight)


def test_auto_is_equal_weights_where_the_rule_allows_it():
    assert auto_desirable_weight(100, 100) == 1
    assert auto_desirable_weight(120, 100, 2.0) == 2
    assert auto_desirable_weight(96, 144) == 1.5
    assert auto_desirable_weight(10, 100) == 10
    assert auto_desirable_weight(200, 100) == 0.75


def test_one_class_has_no_weights():
    assert not obeys_rule(5, 0, 1, 1)
    with pytest.raises(InputError, match="5 desirable and 0 undesirable rows"):
        weight_range(5, 0)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 8))
def test_share_of_one_class_batches_by_enumeration(n_desirable, n_undesirable, batch_size):
    rows = [True] * n_desirable + [False] * n_undesirable
    batches = list(itertools.combinations(rows, min(batch_size, len(rows)))) if rows else []
    expected = Fraction(sum(len({*batch}) == 1 for batch in batches), max(1, len(batches)))
    assert one_class_share(n_desirable, n_undesirable, batch_size) == pytest.approx(float(expected))


@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from([0.01, 0.05, 0.3]))
def test_the_batch_size_is_the_smallest_that_fits(n_desirable, n_undesirable, share):
    size = batch_size_for(n_desirable, n_undesirable, share)
    assert one_class_share(n_desirable, n_undesirable, size) <= share
    assert size == 1 or one_class_share(n_desirable, n_undesirable, size - 1) > share


def test_no_batch_size_fits_one_class():
    assert batch_size_for(10, 0) is None
    assert one_class_share(10, 0, 4) == 1
    assert one_class_share(10**7, 10**7, 16) == pytest.approx(2 * 0.5**16, rel=1e-4)


def test_share_of_one_class_batches_of_an_order():
    labels = [True, True, False, False, True, False]
    assert one_class_share_of([0, 1, 2, 3, 4, 5], labels, 2) == pytest.approx(2 / 3)
    assert one_class_share_of([0, 2, 1, 3, 4, 5], labels, 2) == 0
    assert one_class_share_of([], [], 2) == 0
