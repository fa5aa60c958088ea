"""Addresses past 2^31 elements, on memory that is mapped but never touched. The interpreter wraps 32-bit products."""

import fastkto_kernels as fk
import pytest
import torch
import triton
import triton.language as tl
from fastkto_kernels import fold, gradient, produce
from fastkto_kernels.combine import Kept, Outputs, Partials, combine
from tolerance import assert_close

FAR = (1 << 30) + 8
"""Row stride in elements: row 2 begins past 2^31."""


@pytest.fixture(autouse=True)
def untouched_memory(poisoned_memory):
    torch.utils.deterministic.fill_uninitialized_memory = False


def far(x):
    """The same (rows, columns) values with rows `FAR` elements apart, 2 bytes each."""
    assert x.element_size() == 2
    memory = torch.empty((x.shape[0] - 1) * FAR + x.shape[1], dtype=x.dtype)
    view = memory.as_strided(x.shape, (FAR, 1))
    return view.copy_(x)


def plain(n, v, route="fused"):
    torch.manual_seed(0)
    hidden, weight = torch.randn(n, 8).half(), torch.randn(v, 8).half()
    return fk.Head(hidden, weight, torch.randint(0, v, (n,)), plan=fk.plan_for("interpreter", torch.float16, 8, route))


@triton.jit
def wrapping_kernel(out, stride):
    tl.store(out, (tl.program_id(0) + 2) * stride)


def test_the_interpreter_wraps_32_bit_products():
    out = torch.zeros(1, dtype=torch.int64)
    wrapping_kernel[(1,)](out, FAR)
    assert out.item() == 2 * FAR - (1 << 32)


@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize("which", ["hidden", "weight"])
def test_operands(which, descriptors):
    head = plain(3, 3)
    moved = {"hidden": head.hidden, "weight": head.weight}
    moved[which] = far(moved[which])
    plan = fk.Plan(**{**vars(head.plan), "descriptors": descriptors})
    there = fk.Head(moved["hidden"], moved["weight"], head.targets, plan=plan)
    outputs, _ = fk.forward(head)
    found, _ = fk.forward(there)
    assert torch.equal(found.logps, outputs.logps)
    near, away = (
        fk.backward(x, outputs.lse, torch.ones(3), hidden=True, weight=False, bias=False).hidden for x in (head, there)
    )
    assert torch.equal(near, away)


@pytest.mark.parametrize("route", ["fused", "fold"])
def test_kept_exponentials_and_their_gradient(route):
    """N * V past 2^31: written by the forward, turned into the gradient in place."""
    head = plain(3, 20, route)
    outputs, kept = fk.block_forward(head)
    there = Kept(far(torch.zeros(3, 20, dtype=torch.float16)), kept.anchors.clone())
    produce.score(head.rows(slice(None)), outputs, there)
    assert torch.equal(there.values, kept.values)
    for one in (kept, there):
        gradient.kept_gradient(one, head.targets, outputs, 20, scale=1.0, softcap=None, plan=head.plan)
    assert torch.equal(there.values, kept.values)


@pytest.mark.parametrize("route", ["fused", "fold"])
def test_recomputed_gradient(route):
    head = plain(3, 20, route).rows(slice(None))
    outputs, _ = fk.forward(head)
    units = torch.zeros(3, 20, dtype=torch.float16), far(torch.zeros(3, 20, dtype=torch.float16))
    for unit in units:
        produce.unit_gradient(head, head.weight, None, 0, outputs.lse, unit)
    assert torch.equal(*units)


def test_folded_tile():
    head = plain(3, 16, "fold")
    tile = far((head.hidden.float() @ head.weight.float().T).half())
    unit = torch.empty(3, 16, dtype=torch.float16)
    lse = tile.float().logsumexp(1)
    fold.fold_gradient(tile, head.targets, None, 0, lse, unit, scale=1.0, softcap=None)
    onehot = torch.nn.functional.one_hot(head.targets, 16)
    assert_close(unit, (onehot - (tile.float() - lse[:, None]).exp()).double())


def test_more_than_65535_positions():
    """Grids lie on axis x alone: the last positions of a long batch are reduced like the first."""
    torch.manual_seed(0)
    count = 70_001
    partials = Partials.empty(2, count, torch.empty(0), torch.float32, stats=False)
    z = torch.randn(count, 2)
    partials.peak.copy_(z.T)
    partials.total.fill_(1.0)
    targets = torch.randint(0, 2, (count,))
    partials.picked.copy_(z.gather(1, targets[:, None])[:, 0])
    outputs = Outputs.empty(count, z, torch.float32, stats=False)
    combine(partials, targets, outputs, 2)
    exact = z.double().log_softmax(1).gather(1, targets[:, None])[:, 0]
    assert_close(outputs.logps, exact, z.log_softmax(1).gather(1, targets[:, None])[:, 0])
