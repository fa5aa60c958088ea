"""Evaluation sets, one or many, with pairs of their own, and what evaluation returns."""

import numpy as np
import pytest
from datasets import DatasetDict
from tiny import tiny_llama
from tiny_trainer import noisy, rows, trainer
from tolerance import assert_within

from fastkto.errors import InputError

HELD_OUT = rows(21).select(range(12, 21))
NAMES = ("kl", "kl/raw", "entropy", "rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/rejected")


def test_evaluation_while_training_has_trls_names_and_ours(tmp_path):
    t = trainer(tmp_path, eval_dataset=HELD_OUT, eval_strategy="steps", eval_steps=1, ref_model=noisy(tiny_llama()))
    t.train()
    lines = [line for line in t.state.log_history if "eval_loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert {f"eval_{name}" for name in NAMES} <= line.keys()
        assert not {name for name in line if name in NAMES}
    train_lines = [line for line in t.state.log_history if "loss" in line]
    assert [line["eval_num_tokens"] for line in lines] == [line["num_tokens"] for line in train_lines]
    assert not any(name.startswith("eval_") for line in train_lines for name in line)


def test_many_sets_and_sets_passed_later(tmp_path):
    sets = {"near": HELD_OUT.select(range(4)), "far": HELD_OUT.select(range(4, 9))}
    t = trainer(tmp_path, eval_dataset=sets, ref_model=noisy(tiny_llama()))
    figures = t.evaluate()
    assert {f"eval_{kind}_{name}" for kind in sets for name in ("loss", *NAMES)} <= figures.keys()
    assert figures["eval_near_loss"] != figures["eval_far_loss"]
    for name, data in sets.items():
        assert t.evaluate(data)["eval_loss"] == figures[f"eval_{name}_loss"]
        assert t.evaluate(name, metric_key_prefix=f"eval_{name}")[f"eval_{name}_loss"] == figures[f"eval_{name}_loss"]
    again = t.evaluate(DatasetDict(sets), metric_key_prefix="test")
    assert again["test_far_rewards/margins"] == figures["eval_far_rewards/margins"]
    predicted = t.predict(sets["far"])
    assert predicted.metrics["test_loss"] == figures["eval_far_loss"]
    assert predicted.predictions.shape == predicted.label_ids.shape == (5,)


def test_the_batch_size_of_evaluation_makes_the_pairs_of_evaluation(tmp_path):
    """TRL pairs its evaluation rows by the batch size of training."""
    found = {}
    for size in (4, 8):
        t = trainer(tmp_path, eval_dataset=HELD_OUT.select(range(8)), per_device_eval_batch_size=size)
        batches = [batch["KL_row_keys"] for batch in t.get_eval_dataloader()]
        assert [len(batch) for batch in batches] == [size] * (8 // size)
        found[size] = {key for batch in batches for key in batch}
    assert len(found[4] & found[8]) == 6


def test_order_and_rows_of_evaluation_do_not_depend_on_training(tmp_path):
    t = trainer(tmp_path, eval_dataset=HELD_OUT)
    seen = [row for batch in t.get_eval_dataloader() for row in batch["row_ids"].tolist()]
    assert seen[:9] == list(range(9))
    first = t.evaluate()
    assert t.evaluate()["eval_loss"] == first["eval_loss"]
    plain = trainer(tmp_path)
    plain.train()
    interrupted = trainer(tmp_path, eval_dataset=HELD_OUT, eval_strategy="steps", eval_steps=1, eval_on_start=True)
    interrupted.train()
    losses = [[line["loss"] for line in x.state.log_history if "loss" in line] for x in (plain, interrupted)]
    assert losses[0] == losses[1]


def test_compute_metrics_gets_rewards_and_labels(tmp_path):
    got = []

    def compute(prediction):
        got.append((prediction.predictions, prediction.label_ids))
        return {"spread": np.ptp(prediction.predictions)}

    data = HELD_OUT  # nine rows in batches of four: the last one is refilled, and its second row counted once
    own = {"compute_metrics": compute, "eval_dataset": data, "ref_model": noisy(tiny_llama())}
    t = trainer(tmp_path, per_device_eval_batch_size=4, **own)
    figures = t.evaluate()
    (rewards, labels) = got[0]
    assert rewards.shape == labels.shape == (9,)
    assert labels.tolist() == data["label"]
    assert_within(figures["eval_spread"], float(np.ptp(rewards)), relative=1e-6)
    whole = trainer(tmp_path, per_device_eval_batch_size=16, **{**own, "compute_metrics": None})
    expected = whole.evaluate()
    assert_within(expected["eval_rewards/chosen"], float(rewards[labels].mean()), relative=1e-4)
    assert_within(expected["eval_rewards/rejected"], float(rewards[~labels].mean()), relative=1e-4)


def test_a_streamed_evaluation_set(tmp_path):
    own = {"ref_model": noisy(tiny_llama()), "per_device_eval_batch_size": 3}
    stream = trainer(tmp_path, eval_dataset=HELD_OUT.to_iterable_dataset(), **own).evaluate()
    stored = trainer(tmp_path, eval_dataset=HELD_OUT, **own).evaluate()
    for name in ("loss", *NAMES):
        assert_within(stream[f"eval_{name}"], stored[f"eval_{name}"], relative=1e-6, name=name)


def test_bad_evaluation_rows_are_named(tmp_path):
    with pytest.raises(InputError, match="^eval_dataset: got 'list'"):
        trainer(tmp_path, eval_dataset=rows(4).to_list())
    with pytest.raises(InputError, match="near"):
        trainer(tmp_path, eval_dataset={"near": rows(4).remove_columns("label")})
    t = trainer(tmp_path)
    with pytest.raises(ValueError, match="eval_dataset"):
        t.evaluate()


@pytest.mark.parametrize("packing", [True, False])
def test_what_the_trainer_counts_and_shows_is_there(packing, tmp_path):
    """`include_for_metrics`, the number of input tokens and of operations, as with TRL."""
    seen = []

    def metrics(prediction):
        seen.append(prediction.inputs)
        return {}

    t = trainer(
        tmp_path,
        packing=packing,
        eval_dataset=rows(6),
        compute_metrics=metrics,
        include_for_metrics=["inputs"],
        include_num_input_tokens_seen="all",
    )
    t.train()
    assert t.state.num_input_tokens_seen > 0
    assert t.state.total_flos > 0
    t.evaluate()
    ids = [[*row["prompt_ids"], *row["completion_ids"]] for row in t.eval_dataset]
    assert [
        [token for token in held if token >= 0][: len(row)] for held, row in zip(seen[0].tolist(), ids, strict=False)
    ] == ids
