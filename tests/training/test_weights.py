"""A weight a row: a step is sum(w l) / sum(w) over all its rows, on every way through the micro-step."""

import copy

import pytest
import torch
from tiny import tiny_llama
from tiny_trainer import GENTLE, Gradients, by_hand, noisy, rows, steps, trainer, weighted
from tolerance import assert_close, assert_within

WEIGHTS = [0.2, 3.0, 0.0, 1.0, 0.7, 2.5, 1.1, 4.0, 0.5, 0.0]
SETTINGS = {**GENTLE, "max_steps": -1, "num_train_epochs": 1, "desirable_weight": 1.5, "undesirable_weight": 0.5}
WAYS = {
    "packed": {},
    "packed, several forwards": {"max_tokens_per_forward": 30},
    "padded": {"packing": False},
    "a row a micro-batch": {"loss_type": "apo_zero_unpaired", "per_device_train_batch_size": 1},
}


def run(folder, data, **settings):
    gradients = Gradients()
    own = {"train_dataset": data, "ref_model": noisy(tiny_llama()), "callbacks": [gradients]}
    t = trainer(folder, **{**SETTINGS, **own, **settings})
    t.train()
    return t, gradients.steps


@pytest.mark.parametrize("way", ["packed", "packed, several forwards", "padded"])
def test_a_step_is_the_weighted_mean_over_its_rows(way, tmp_path):
    """Micro-batches of 4, 4 and 2 rows in steps of two, whose weights add up to 4.2, 8.3 and 0.5."""
    t, found = run(tmp_path, weighted(rows(10), WEIGHTS), gradient_accumulation_steps=2, **WAYS[way])
    narrow = tiny_llama(), noisy(tiny_llama())
    wide = tuple(copy.deepcopy(model).double() for model in narrow)
    batches_of_steps = [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9]]]
    for line, gradients, batches in zip(steps(t), found, batches_of_steps, strict=True):
        results = []
        for models in (wide, narrow):
            models[0].zero_grad()
            loss = by_hand(*models, t.train_dataset, batches, beta=0.5, weights=(1.5, 0.5))
            loss.backward()
            results.append((loss, {n: p.grad.clone() for n, p in models[0].named_parameters()}))
        (exact, oracle), (same_loss, same) = results
        assert_close(torch.tensor(line["loss"], dtype=torch.float32), exact, same_loss, name="loss")
        for name, gradient in gradients.items():
            assert_close(gradient, oracle[name], same[name], name=name)
    assert line["kl"] != 0


def test_a_batch_and_its_rows_one_by_one_are_one_weighted_step(tmp_path):
    data = weighted(rows(10), WEIGHTS)
    one = {"loss_type": "apo_zero_unpaired", "per_device_train_batch_size": 10}
    (t, whole), (u, split) = (
        run(tmp_path, data, **one),
        run(tmp_path, data, gradient_accumulation_steps=10, **WAYS["a row a micro-batch"]),
    )
    assert_within(steps(u)[0]["loss"], steps(t)[0]["loss"], relative=1e-6)
    for name, gradient in split[0].items():
        assert_within((gradient - whole[0][name]).norm().item(), 0.0, absolute=1e-5 * whole[0][name].norm().item())


@pytest.mark.parametrize("way", WAYS)
def test_weights_of_one_change_no_bit(way, tmp_path):
    sets = rows(10), rows(17).select(range(10, 17))
    settings = {"gradient_accumulation_steps": 2, "eval_strategy": "epoch", **WAYS[way]}
    found = []
    for train, test in (sets, [weighted(each, [1.0] * len(each)) for each in sets]):
        t, gradients = run(tmp_path, train, eval_dataset=test, **settings)
        lines = [
            {k: v for k, v in line.items() if "second" not in k and "time" not in k} for line in t.state.log_history
        ]
        found.append((lines, gradients))
    (plain_lines, plain), (lines, same) = found
    assert lines == plain_lines
    assert any("eval_loss" in line for line in lines)
    for one, other in zip(plain, same, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_whose_weights_add_up_to_zero_teaches_nothing(tmp_path):
    data = weighted(rows(8), [0.0] * 4 + [1.0] * 4)
    t, gradients = run(tmp_path, data, eval_dataset=weighted(rows(4), [0.0] * 4))
    assert [line["loss"] == 0 for line in steps(t)] == [True, False]
    assert [any(gradient.any() for gradient in step.values()) for step in gradients] == [False, True]
    assert t.evaluate()["eval_loss"] == 0


def test_an_evaluation_is_the_weighted_mean_over_all_its_rows(tmp_path):
    """apo_zero_unpaired has no z0, so that a row has the same loss in every batch."""
    data = weighted(rows(8), WEIGHTS[:8])
    own = {"ref_model": noisy(tiny_llama()), "loss_type": "apo_zero_unpaired", "beta": 0.5}
    t = trainer(tmp_path, eval_dataset=data, per_device_eval_batch_size=3, **own)
    losses = [t.evaluate(rows(8).select([i]))["eval_loss"] for i in range(8)]
    expected = sum(w * loss for w, loss in zip(WEIGHTS, losses, strict=False)) / sum(WEIGHTS[:8])
    assert_within(t.evaluate()["eval_loss"], expected, relative=1e-6)
    streams = trainer(
        tmp_path, per_device_eval_batch_size=4, **own
    )  # a stream's short last batch counts as a whole one
    assert_within(streams.evaluate(data.to_iterable_dataset())["eval_loss"], expected, relative=1e-6)
