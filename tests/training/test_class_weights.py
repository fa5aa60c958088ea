"""Class weights and labels on their way into the loss."""

import re

import pytest
from datasets import Dataset
from tiny_trainer import rows, steps, trainer
from tolerance import assert_within

from fastkto.errors import InputError


@pytest.mark.parametrize(
    ("desirable", "auto", "warned"),
    [(6, 1.0, False), (3, 3.0, True), (9, 0.5, True)],
)
def test_auto_weight_solves_the_rule_and_a_weight_outside_it_warns(desirable, auto, warned, tmp_path, warnings):
    data = rows(12, desirable=lambda i: i < desirable)
    t = trainer(tmp_path, train_dataset=data, desirable_weight="auto")
    assert_within(t.settings.desirable_weight, auto, relative=1e-9)
    ratio = t.settings.desirable_weight * desirable / (12 - desirable)
    assert 1 <= ratio <= 1.5
    assert f'desirable_weight="auto" is {auto:g} for {desirable} desirable' in warnings.text
    warnings.clear()
    trainer(tmp_path, train_dataset=data)
    assert ("leave the paper's rule" in warnings.text) == warned
    if warned:
        low = (12 - desirable) / desirable
        assert f"desirable_weight from {low:.2f} to {1.5 * low:.2f} fits" in warnings.text


def test_auto_with_one_class_is_an_error(tmp_path):
    with pytest.raises(InputError, match="^label: got '12 desirable and 0 undesirable rows'"):
        trainer(tmp_path, train_dataset=rows(desirable=lambda i: True), desirable_weight="auto")


def test_micro_batches_of_one_class_are_announced(tmp_path, warnings):
    data = rows(12, desirable=lambda i: i < 3)
    trainer(tmp_path, train_dataset=data)
    assert "25% of the micro-batches of 4 rows will hold one class" in warnings.text
    assert 'train_sampling_strategy="stratified" avoids it' in warnings.text
    enough = int(re.search(r"per_device_train_batch_size=(\d+)", warnings.text)[1])
    warnings.clear()
    trainer(tmp_path, train_dataset=data, train_sampling_strategy="stratified")
    trainer(tmp_path, train_dataset=data, per_device_train_batch_size=enough)
    assert "one class" not in warnings.text
    trainer(tmp_path, train_dataset=data, per_device_train_batch_size=enough - 1)
    assert "one class" in warnings.text


def test_class_weights_reach_the_fused_head(tmp_path):
    """Bug of a peer: class weights dropped on the fused path."""
    losses = []
    for weight in (1.0, 3.0):
        t = trainer(tmp_path, desirable_weight=weight, undesirable_weight=0.5, max_steps=1)
        t.train()
        losses.append(steps(t)[0]["loss"])
    assert losses[0] != losses[1]


def test_string_labels_are_read_as_what_they_say(tmp_path):
    """Bug of a peer: string labels read as all true."""
    data = Dataset.from_list([{**row, "label": str(row["label"])} for row in rows().to_list()])
    t = trainer(tmp_path, train_dataset=data)
    assert list(t.train_dataset["label"]) == list(rows()["label"])
