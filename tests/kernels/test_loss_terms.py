"""The two kernels of the loss, against the loss's own functions."""

import fastkto_kernels as fk
import pytest
import torch
from tolerance import assert_close

from fastkto.head import oracle
from fastkto.losses.kto import kto_loss, logp_gradients, row_weights

WEIGHTS = {"desirable_weight": 1.7, "undesirable_weight": 0.6}


def rows_of(lengths, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    return -torch.rand(bounds[-1], dtype=dtype), bounds, torch.randn(len(lengths), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", [[4, 1, 9], [0, 300, 0, 257], [3] * 40, [70_000, 2]])
def test_row_sums(lengths, dtype):
    logps, bounds, ref = rows_of(lengths, dtype)
    found = fk.row_sums(logps, torch.tensor(bounds), ref)
    exact, plain = oracle.row_sums(logps.double(), bounds), oracle.row_sums(logps, bounds)
    assert_close(found.logps, exact, plain)
    assert_close(found.log_ratios, exact - ref.double(), plain - ref)
    assert_close(found.sum_and_count[0], (exact - ref.double()).sum(), (plain - ref).sum())
    assert found.sum_and_count[1] == len(lengths)


def test_a_rows_sum_depends_on_the_row_alone():
    logps, bounds, ref = rows_of([5, 700, 33, 1] * 6)
    whole = fk.row_sums(logps, torch.tensor(bounds), ref)
    alone = fk.row_sums(logps[bounds[17] : bounds[18]], torch.tensor([0, bounds[18] - bounds[17]]), ref[17:18])
    assert torch.equal(alone.logps, whole.logps[17:18])
    same = fk.row_sums(logps, torch.tensor(bounds), whole.logps)
    assert torch.equal(same.log_ratios, torch.zeros(24))


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize("weighted", [False, True])
def test_terms(count, size, loss_type, weighted):
    """Loss, coefficients and logged sums; at 1e4 nats every sigmoid is saturated."""
    torch.manual_seed(count)
    logps, ref = size * torch.randn(count), size * torch.randn(count)
    labels, kl = torch.arange(count) % 3 != 0, 1 + 0.1 * torch.randn(5)
    rows = fk.RowSums(logps, logps - ref, torch.zeros(2))
    both = torch.stack([kl.sum(), torch.tensor(5.0)]) if loss_type == "kto" else None
    own = torch.rand(count) if weighted else None
    found = fk.kto_terms(rows, labels, both, torch.tensor([2.0 * count]), own, beta=0.3, **WEIGHTS)
    leaf = logps.clone().requires_grad_()
    options = {"beta": 0.3, "loss_type": loss_type, "num_rows": 2 * count, "weights": own, **WEIGHTS}
    zero = torch.zeros(5)

    def loss_of(x, dtype):
        return kto_loss(x, ref.to(dtype), labels, kl_logps=kl.to(dtype), ref_kl_logps=zero.to(dtype), **options)

    exact, plain = loss_of(logps.double(), torch.float64), loss_of(leaf, torch.float32)
    plain.loss.backward()
    for name in ("loss", "z0", "rewards", "utilities"):
        assert_close(getattr(found, name), getattr(exact, name), getattr(plain, name), name=name)
    weights = row_weights(labels, own, **WEIGHTS, dtype=torch.float64)
    slopes = logp_gradients(exact.utilities, labels, weights, beta=0.3, num_rows=2 * count)
    assert_close(found.coefficients, slopes, leaf.grad, name="coefficients")
    sums = [x[labels == good].double().sum() for good in (True, False) for x in (labels | True, found.rewards, logps)]
    assert_close(found.statistics, torch.stack([sums[i] for i in (0, 1, 2, 3, 4, 5)]), name="statistics")


def test_a_negative_mean_is_clamped_and_a_nan_is_not():
    rows = fk.RowSums(torch.zeros(2), torch.zeros(2), torch.zeros(2))
    labels, step = torch.tensor([True, False]), torch.tensor([2.0])
    low = fk.kto_terms(rows, labels, torch.tensor([-3.0, 2.0]), step, beta=0.1)
    assert low.z0 == 0
    assert torch.equal(low.coefficients, torch.tensor([-0.0125, 0.0125]))
    bad = fk.kto_terms(rows, labels, torch.tensor([float("nan"), 2.0]), step, beta=0.1)
    assert bad.z0.isnan()
    assert bad.loss.isnan()
