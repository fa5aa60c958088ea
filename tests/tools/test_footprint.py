"""Storages are counted once, under the label of their moment, from their making to their end."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastkto.tools.footprint import GRADIENTS, Footprint

KIB = 1024


def kib(count):
    return torch.empty(count * 256)


def test_the_peak_is_of_what_lives_at_once():
    with Footprint() as footprint:
        a = kib(3)
        b = kib(4)
        del a
        c = kib(2)
        del b, c
    assert sum(footprint.at_peak.values()) == 7 * KIB
    assert sum(footprint.alive.values()) == 0


def test_views_and_results_in_place_are_no_storage_of_their_own():
    with Footprint() as footprint:
        a = kib(1)
        views = a.view(16, 16).T, a[3:], a.add_(1).detach()
        assert sum(footprint.alive.values()) == KIB
        del views, a
    assert sum(footprint.alive.values()) == 0


def test_a_view_keeps_its_storage_alive():
    with Footprint() as footprint:
        part = kib(5)[:1]
        assert sum(footprint.alive.values()) == 5 * KIB
        del part


def test_labels_are_those_of_the_moment_or_given_later():
    with Footprint() as footprint:
        with footprint.labelled("a"):
            a = kib(1)
        with footprint.labelled("b"):
            b, c = kib(2), kib(4)
        footprint.relabel(c[1:], "c")
        assert footprint.alive == {"a": KIB, "b": 2 * KIB, "c": 4 * KIB}
        del a, b, c
    assert not +footprint.alive


@pytest.mark.parametrize("fake", [False, True])
def test_a_backward_is_counted_and_its_gradients_are_named(fake):
    with FakeTensorMode() if fake else torch.no_grad(), torch.enable_grad(), Footprint() as footprint:
        weight = torch.nn.Parameter(torch.empty(64, 64).fill_(0.5))
        footprint.watch_gradient(weight)
        x = torch.empty(128, 64).fill_(1.0)
        (x @ weight).relu().sum().backward()
        assert weight.grad is not None
        assert footprint.alive[GRADIENTS] == 64 * 64 * 4
        # x, the product and the relu's result live until the backward
        assert sum(footprint.at_peak.values()) >= 4 * (2 * 64 * 64 + 2 * 128 * 64)
