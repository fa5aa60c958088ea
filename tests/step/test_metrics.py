"""The figures of a log line, from sums over micro-steps of unequal size."""

import math

import pytest
import torch
from tolerance import assert_close, assert_within

from fastkto.head.fused_kto import FusedKTO
from fastkto.losses.kto import class_sums
from fastkto.step.metrics import SATURATED, Meter, step_sums


def output(labels, lengths, *, seed=0):
    """What a step returns, with random figures."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    rows, tokens = len(lengths), sum(lengths)
    rewards, logps = randn(rows), -5 + randn(rows)
    return FusedKTO(
        loss=randn(()),
        rewards=rewards,
        logps=logps,
        z0=randn(()).abs(),
        kl=2 + randn(rows),
        utilities=4 * randn(rows),
        class_sums=class_sums(torch.as_tensor(labels), rewards, logps),
        entropy=randn(tokens).abs(),
        mean_logits=randn(tokens),
    )


STEPS = [((4, 1, 9), [True, False, True]), ((2, 3, 5, 1), [False, False, True, False]), ((7, 2), [True, True])]


def batch(labels, lengths):
    bounds = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    return {"label": labels, "cu_seqlens": bounds, "num_tokens": sum(lengths)}


@pytest.fixture
def line():
    """The line after `STEPS`, and the outputs that went in."""
    meter = Meter(lambda sums: sums)
    outputs = []
    for seed, (lengths, labels) in enumerate(STEPS):
        out = output(labels, lengths, seed=seed)
        outputs.append((out, torch.tensor(labels), lengths))
        meter.add(step_sums(out, batch(torch.tensor(labels), lengths), None))
    return meter.flush(), outputs, meter


def test_means_are_over_rows_or_tokens_and_not_over_micro_steps(line):
    figures, outputs, _ = line
    labels = torch.cat([labels for _, labels, _ in outputs])
    rewards = torch.cat([out.rewards for out, _, _ in outputs])
    logps = torch.cat([out.logps for out, _, _ in outputs])
    kl = torch.cat([out.kl for out, _, _ in outputs]).double()
    u = torch.cat([out.utilities for out, _, _ in outputs])
    entropy = torch.cat([out.entropy for out, _, _ in outputs])
    by_token = torch.cat([labels.repeat_interleave(torch.tensor(lengths)) for _, labels, lengths in outputs])
    logits = torch.cat([out.mean_logits for out, _, _ in outputs])
    expected = {
        "kl": torch.stack([out.z0 for out, _, _ in outputs]).mean(),
        "kl/raw": kl.mean(),
        "kl/stderr": kl.std(correction=0) / math.sqrt(9 / 3),
        "entropy": entropy.mean(),
        "rewards/chosen": rewards[labels].mean(),
        "rewards/rejected": rewards[~labels].mean(),
        "rewards/margins": rewards[labels].mean() - rewards[~labels].mean(),
        "logps/chosen": logps[labels].mean(),
        "logps/rejected": logps[~labels].mean(),
        "logits/chosen": logits[by_token].mean(),
        "logits/rejected": logits[~by_token].mean(),
        "rewards/accuracies": (u > 0).float().mean(),
        "saturated": (u.abs() > SATURATED).float().mean(),
        "num_tokens": torch.tensor(34.0),
    }
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        assert_within(figures[name], value.item(), relative=1e-5, absolute=1e-6, name=name)


def test_saturated_is_a_tenth_of_the_largest_gradient():
    u = torch.tensor(SATURATED, dtype=torch.float64)
    assert_close(
        torch.sigmoid(u) * torch.sigmoid(-u), torch.tensor(0.025, dtype=torch.float64), same_dtype=u * 0 + 0.025 + 1e-9
    )


def test_flush_starts_anew_and_clear_forgets(line):
    _, outputs, meter = line
    assert meter.flush() == {}
    out, labels, lengths = outputs[0]
    sums = step_sums(out, batch(labels, lengths) | {"num_tokens": 5}, None)
    meter.add(sums)
    meter.clear()
    meter.add(sums)
    assert meter.flush()["num_tokens"] == 5


def test_ranks_are_reduced_before_anything_is_divided():
    """Bug of a peer: metrics of the main process only; a rank without one class must not hang or give NaN."""
    labels, lengths = torch.tensor([True, True, True]), (4, 1, 9)
    other_labels = torch.tensor([False, False, True])
    out, other = output(labels, lengths), output(other_labels, lengths, seed=9)
    vectors = [step_sums(o, batch(each, lengths), None) for o, each in ((out, labels), (other, other_labels))]
    meter = Meter(lambda sums: sums + vectors[1])
    meter.add(vectors[0])
    figures = meter.flush()
    rewards = torch.cat([out.rewards, other.rewards])
    assert_within(figures["rewards/rejected"], other.rewards[:2].mean().item(), relative=1e-5)
    both = torch.cat([labels, other_labels])
    assert_within(figures["rewards/chosen"], rewards[both].mean().item(), relative=1e-5)


def test_a_class_that_is_absent_has_no_figure_and_a_bad_row_shows_in_its_own_class():
    lengths = (4, 1, 9)
    labels = torch.tensor([True, False, True])
    out = output(labels, lengths)
    out.rewards[1] = float("nan")
    out = out._replace(class_sums=class_sums(labels, out.rewards, out.logps))
    meter = Meter(lambda sums: sums)
    meter.add(step_sums(out, batch(labels, lengths), torch.tensor(2.0)))
    figures = meter.flush()
    assert math.isnan(figures["rewards/rejected"])
    assert math.isnan(figures["rewards/margins"])
    assert math.isfinite(figures["rewards/chosen"])
    assert figures["aux_loss"] == 2.0
    good = torch.tensor([True] * 3)
    meter.add(step_sums(output(good, lengths), batch(good, lengths), None))
    figures = meter.flush()
    assert not {"rewards/rejected", "rewards/margins", "logps/rejected", "logits/rejected", "aux_loss"} & figures.keys()


def test_without_a_kl_term_there_are_no_kl_figures():
    out = output([True, False], (3, 3))._replace(kl=torch.zeros(0), z0=torch.zeros(()))
    meter = Meter(lambda sums: sums)
    meter.add(step_sums(out, batch(torch.tensor([True, False]), (3, 3)), None))
    figures = meter.flush()
    assert figures["kl"] == 0.0
    assert not {"kl/raw", "kl/stderr"} & figures.keys()
