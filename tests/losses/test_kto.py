"""The loss: by hand, the paper's propositions, and the bugs that others shipped."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_close

from fastkto.errors import InputError
from fastkto.losses.kto import kto_loss, logp_gradients, reference_point, row_weights

LOGPS = st.floats(-80, 0)
WEIGHTS = st.just(0.0) | st.floats(0.01, 5)


def rows(n, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return {
        "logps": (-20 * torch.rand(n, dtype=dtype)).requires_grad_(),
        "ref_logps": -20 * torch.rand(n, dtype=dtype),
        "labels": torch.rand(n) < 0.5,
        "kl_logps": -20 * torch.rand(n, dtype=dtype),
        "ref_kl_logps": -20 * torch.rand(n, dtype=dtype),
    }


def by_hand(logps, ref_logps, labels, kl_logps, ref_kl_logps, weights, beta, weight_d, weight_u):
    """Equations (2) to (6), one Python float at a time."""
    z0 = max(0.0, sum(a - b for a, b in zip(kl_logps, ref_kl_logps, strict=True)) / len(kl_logps))
    total = 0.0
    for logp, ref, label, weight in zip(logps, ref_logps, labels, weights, strict=True):
        u = beta * (logp - ref - z0) if label else beta * (z0 - (logp - ref))
        total += weight * (weight_d if label else weight_u) * (1 - 1 / (1 + math.exp(-u)))
    return total / (sum(weights) or 1)


@settings(max_examples=100, deadline=None)
@given(
    data=st.lists(st.tuples(LOGPS, LOGPS, st.booleans(), LOGPS, LOGPS, WEIGHTS), min_size=1, max_size=9),
    beta=st.floats(0.01, 2),
    weight_d=st.floats(0.1, 5),
    weight_u=st.floats(0.1, 5),
)
def test_equals_the_equations_by_hand(data, beta, weight_d, weight_u):
    columns = list(zip(*data, strict=True))
    logps, ref, labels, kl, ref_kl, weights = (
        torch.tensor(c, dtype=torch.bool if i == 2 else torch.float64) for i, c in enumerate(columns)
    )
    options = {"beta": beta, "desirable_weight": weight_d, "undesirable_weight": weight_u}
    # u is rounded at up to 160 nats * beta of 2, then enters at a slope of up to weight / 4
    rounding = 4 * 160 * 2 * 5 / 4 * torch.finfo(torch.float64).eps
    for asked, each in ((weights, columns[5]), (None, [1.0] * len(data))):
        out = kto_loss(logps, ref, labels, kl_logps=kl, ref_kl_logps=ref_kl, weights=asked, **options)
        expected = by_hand(*columns[:5], each, beta, weight_d, weight_u)
        assert math.isclose(out.loss.item(), expected, rel_tol=1e-9, abs_tol=rounding)
    assert torch.equal(out.rewards, beta * (logps - ref))


ROW_WEIGHTS = torch.tensor([0.2, 3.0, 0.0, 1.0, 0.7, 1.5, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("weights", [None, ROW_WEIGHTS])
def test_fp64_gradcheck_and_the_closed_form_of_the_gradient(weights):
    inputs = rows(7)
    kwargs = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5, "weights": weights}
    rest = {k: v for k, v in inputs.items() if k != "logps"}
    assert torch.autograd.gradcheck(lambda x: kto_loss(x, **rest, **kwargs).loss, inputs["logps"])
    out = kto_loss(**inputs, **kwargs)
    out.loss.backward()
    both = row_weights(inputs["labels"], weights, desirable_weight=1.5, undesirable_weight=0.5, dtype=torch.float64)
    total = 7 if weights is None else 8.4
    closed = logp_gradients(out.utilities, inputs["labels"], both, beta=0.3, num_rows=total)
    assert_close(inputs["logps"].grad, closed, name="eq. (7)")


def test_the_gradient_vanishes_as_the_log_ratio_grows():
    """Proposition 4.1: rows that are already certain teach nothing, on either side."""
    for sign in (-1.0, 1.0):
        logps = (sign * torch.tensor([1.0, 10.0, 20.0, 1000.0], dtype=torch.float64)).requires_grad_()
        kto_loss(
            logps,
            torch.zeros(4),
            torch.tensor([True, False, True, False]),
            kl_logps=torch.zeros(4),
            ref_kl_logps=torch.zeros(4),
            beta=1.0,
        ).loss.backward()
        size = logps.grad.abs()
        assert (size[1:] < size[:-1]).all()
        assert size[-1] == 0


@settings(max_examples=50, deadline=None)
@given(ratio=st.floats(-50, 50), z0=st.floats(0, 20), beta=st.floats(0.01, 3))
def test_contradictory_labels_cancel(ratio, z0, beta):
    """Theorem 4.3: one answer liked and disliked, at equal weights, has zero gradient at every u."""
    logp = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    kl = torch.full((2,), z0, dtype=torch.float64)
    out = kto_loss(
        logp.expand(2), torch.zeros(2), torch.tensor([True, False]), kl_logps=kl, ref_kl_logps=torch.zeros(2), beta=beta
    )
    out.loss.backward()
    assert abs(logp.grad.item()) < 1e-15
    assert_close(out.loss.detach(), torch.tensor(0.5, dtype=torch.float64))


def test_policy_equal_to_reference_starts_at_half_the_mean_weight():
    x = torch.tensor([-3.0, -700.0, -1e4])
    out = kto_loss(x, x, torch.tensor([True, False, False]), kl_logps=x, ref_kl_logps=x, desirable_weight=2.0)
    assert torch.equal(out.rewards, torch.zeros(3))
    assert torch.equal(out.kl, torch.zeros(3))
    assert out.loss == (2.0 + 1 + 1) / 6


def test_the_mean_is_clamped_not_its_parts():
    """Sum and count are reduced over ranks, then divided, then clamped (NeMo-Aligner clamped per rank)."""
    ranks = [torch.tensor([-4.0, -4.0, -4.0]), torch.tensor([6.0])]
    total = torch.stack([torch.cat(ranks).sum(), torch.tensor(4.0)])
    seen = [reference_point(kl, reduce=lambda x: total) for kl in ranks]
    assert seen[0] == seen[1] == 0
    assert torch.stack([reference_point(kl) for kl in ranks]).mean() == 3  # what a mean of clamped means would say
    assert reference_point(torch.tensor([-1.0, 2.0])) == 0.5


def test_no_gradient_through_z0():
    inputs = rows(5)
    inputs["kl_logps"].requires_grad_()
    kto_loss(**inputs).loss.backward()
    assert inputs["kl_logps"].grad is None


@pytest.mark.parametrize("label", [True, False])
def test_one_class_batches_are_finite(label):
    inputs = rows(4) | {"labels": torch.full((4,), label)}
    out = kto_loss(**inputs)
    out.loss.backward()
    assert out.loss.isfinite()
    assert inputs["logps"].grad.isfinite().all()


def test_apo_zero_unpaired_has_no_kl_term():
    inputs = rows(6)
    alone = {k: inputs[k] for k in ("logps", "ref_logps", "labels")}
    out = kto_loss(**alone, beta=0.2, loss_type="apo_zero_unpaired")
    ratios = (inputs["logps"] - inputs["ref_logps"]).detach()
    expected = torch.where(inputs["labels"], 1 - torch.sigmoid(0.2 * ratios), torch.sigmoid(0.2 * ratios)).mean()
    assert_close(out.loss.detach(), expected)
    assert out.z0 == 0
    assert out.kl.numel() == 0


def test_mean_over_the_rows_of_the_whole_step():
    """Two unequal micro-batches with one num_rows: the mean over all rows, not the mean of two means."""
    first, second = rows(2, seed=1), rows(5, seed=2)
    both = kto_loss(**first, num_rows=7).loss + kto_loss(**second, num_rows=torch.tensor(7)).loss
    assert_close(both.detach(), ((kto_loss(**first).loss * 2 + kto_loss(**second).loss * 5) / 7).detach())


def test_weights_of_one_change_no_bit_and_weights_of_zero_give_no_nan():
    inputs = {k: v if k == "labels" else v.detach().float() for k, v in rows(7).items()}
    found = []
    for weights in (None, torch.ones(7), torch.zeros(7)):
        inputs["logps"] = inputs["logps"].detach().requires_grad_()
        out = kto_loss(**inputs, weights=weights, num_rows=None if weights is None else weights.sum())
        out.loss.backward()
        found.append((out.loss.detach(), inputs["logps"].grad, out.z0))
    for one, other in zip(*found[:2], strict=True):
        assert torch.equal(one, other)
    assert found[2][0] == 0
    assert torch.equal(found[2][1], torch.zeros(7))
    assert torch.equal(found[2][2], found[0][2]), "z0 is that of all rows"
    assert kto_loss(**inputs, weights=torch.zeros(7)).loss == 0
    assert kto_loss(**inputs, weights=torch.zeros(7), num_rows=0.0).loss == 0


def test_weights_over_several_calls_are_one_weighted_mean():
    first, second = rows(2, seed=1), rows(5, seed=2)
    w, v = ROW_WEIGHTS[:2], ROW_WEIGHTS[2:]
    both = kto_loss(**first, weights=w, num_rows=8.4).loss + kto_loss(**second, weights=v, num_rows=8.4).loss
    alone = kto_loss(**first, weights=w).loss * w.sum() + kto_loss(**second, weights=v).loss * v.sum()
    assert_close(both.detach(), (alone / 8.4).detach())


def test_a_nan_is_not_hidden():
    inputs = rows(3)
    inputs["ref_logps"][1] = float("nan")
    assert kto_loss(**inputs).loss.isnan()
    inputs = rows(3)
    inputs["kl_logps"][1] = float("nan")
    assert kto_loss(**inputs).z0.isnan()


def test_half_precision_log_probs_are_summed_in_float32():
    inputs = {k: v if v.dtype == torch.bool else v.detach().bfloat16() for k, v in rows(3).items()}
    assert kto_loss(**inputs).loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"labels": torch.tensor([1, 0, 1])}, "labels"),
        ({"labels": torch.tensor([1.0, -1.0, 1.0])}, "labels"),
        ({"labels": torch.tensor([True])}, "labels"),
        ({"ref_logps": torch.zeros(3, 1)}, "ref_logps"),
        ({"kl_logps": None}, "kl_logps and ref_kl_logps"),
        ({"kl_logps": torch.zeros(0), "ref_kl_logps": torch.zeros(0)}, "ref_kl_logps"),
        ({"ref_kl_logps": torch.zeros(2)}, "ref_kl_logps"),
        ({"beta": -0.1}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"loss_type": "KTO"}, "loss_type"),
        ({"weights": torch.tensor([1, 2, 3])}, "weights"),
        ({"weights": torch.ones(3, 1)}, "weights"),
        ({"weights": torch.tensor([1.0, -0.5, 1.0])}, "weights"),
        ({"weights": torch.tensor([1.0, math.nan, 1.0])}, "weights"),
        ({"weights": torch.tensor([1.0, 1.0, math.inf])}, "weights"),
    ],
)
def test_bad_arguments_are_named(change, names):
    with pytest.raises(InputError, match=f"^{names}: got .* expected "):
        kto_loss(**{**rows(3), **change})
