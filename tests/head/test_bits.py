"""A position's log-prob and gradient, given its hidden state, depend on that position alone: to the bit.

Whatever positions are beside it, in whichever block, and on any number of threads; in float32 and in bfloat16. So a
policy equal to its reference has log-ratios of exactly 0, and a resumed run goes on bit for bit.
"""

import pytest
import torch
from heads import SERVING, case

from fastkto.head.backends import BACKENDS, products
from fastkto.head.backends.base import HeadInputs, Wanted
from fastkto.head.backends.native import NativeBackend
from fastkto.head.backends.tiles import TileBackend

V, N = 700, 60
TRAINED, FROZEN = Wanted(True, True, False), Wanted(True, False, False)


@pytest.fixture(params=SERVING)
def backend(request):
    return BACKENDS[request.param]


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch):
    monkeypatch.setattr(TileBackend, "columns", 512)


def blocks_of(backend, positions, monkeypatch):
    for kind in (TileBackend, NativeBackend):
        monkeypatch.setattr(kind, "block_bytes", positions * V * 4)


def ones(_, logps_N, bounds):
    return logps_N.new_ones(len(bounds) - 1)


def scored(backend, head, bounds=None):
    """Log-probs and gradients of every way through the backend; they must agree among themselves already."""
    bounds = bounds or list(range(head.hidden_ND.shape[0] + 1))
    alone = backend.forward(head, stats=False, unit_dx=False)
    unit = backend.forward(head, stats=True, unit_dx=True)
    trained, trained_grads = backend.forward_backward(head, bounds, ones, TRAINED, stats=True)
    frozen, frozen_grads = backend.forward_backward(head, bounds, ones, FROZEN, stats=False)
    again = backend.backward(head, alone.lse_N, torch.ones_like(alone.logps_N), FROZEN)
    for out in (unit, trained, frozen):
        assert torch.equal(out.logps_N, alone.logps_N)
    assert torch.equal(again.hidden_ND, trained_grads.hidden_ND)
    return alone.logps_N, trained_grads.hidden_ND, frozen_grads.hidden_ND, unit.unit_dx_ND


@pytest.mark.bits
@pytest.mark.parametrize("depth", [200, 576, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_position_depends_on_itself_alone(backend, dtype, depth, monkeypatch):
    hidden, weight, targets, bias = case(N, depth, V, dtype=dtype, bias=True)

    def head(which):
        return HeadInputs(hidden[which], weight, targets[which], bias, None, 1.0, dtype)

    whole = scored(backend, head(slice(None)))
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    packs = [shuffled[i : i + 1] for i in range(4)] + [shuffled.roll(7 * n)[:n] for n in range(2, 41)]
    threads = torch.get_num_threads()
    try:
        for number, pack in enumerate(packs):
            torch.set_num_threads(2 if number % 10 == 5 else 1)  # beside busy cores a second thread is mostly waiting
            for found, expected in zip(scored(backend, head(pack)), whole, strict=True):
                assert torch.equal(found, expected[pack]), f"{len(pack)} positions"
        for rows in range(1, 12):
            torch.set_num_threads(2 if rows in (3, 8) else 1)
            blocks_of(backend, rows, monkeypatch)
            for found, expected in zip(scored(backend, head(slice(None))), whole, strict=True):
                assert torch.equal(found, expected), f"blocks of {rows} rows"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("rows", [1, 3, 127, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_product_of_tiles_has_one_shape(rows, dtype, monkeypatch):
    """What the tiles backend rests on: the library is never shown how many positions there are."""
    shapes, matmul = set(), products.matmul
    monkeypatch.setattr(products, "has_onednn", lambda: False)
    monkeypatch.setattr(products, "matmul", lambda a, b: shapes.add(tuple(a.shape)) or matmul(a, b))
    a, b = torch.randn(rows, 40, dtype=dtype), torch.randn(40, 30, dtype=dtype)
    assert products.product(a, b).shape == (rows, 30)
    assert shapes == {(128, 40)}
