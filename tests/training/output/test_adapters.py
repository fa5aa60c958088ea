"""Adapters in checkpoints: a resumed run is the run that was not stopped, for every kind that peft has."""

import json

import pytest
import torch
from adapters import EVERY, SAMPLE, adapter_config
from tiny import tiny_llama
from tiny_trainer import noisy, rows, trainer

KINDS = [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in EVERY)]


def start(folder, name, **changes):
    model = noisy(tiny_llama(attention_bias=True))
    prefix = name.startswith("prefix")
    return trainer(
        folder,
        model=model,
        peft_config=adapter_config(name),
        train_dataset=rows(20),
        max_steps=4,
        learning_rate=1e-2,
        gradient_checkpointing=not prefix,
        **changes,
    )


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_adapter_goes_on_bit_for_bit(name, tmp_path):
    whole = start(tmp_path / "whole", name, save_strategy="steps", save_steps=2)
    before = {key: x.clone() for key, x in whole.model.named_parameters() if x.requires_grad}
    whole.train()
    after = dict(whole.model.named_parameters())
    assert any(not torch.equal(x, after[key]) for key, x in before.items()), "nothing trained"
    resumed = start(tmp_path / "resumed", name)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "out" / "checkpoint-2"))

    def curve(t):
        return [
            {k: v for k, v in line.items() if "time" not in k and "second" not in k}
            for line in t.state.log_history[:-1]
        ]

    assert curve(resumed) == json.loads(json.dumps(curve(whole)))
    for key, x in resumed.model.named_parameters():
        assert torch.equal(x, after[key]), key
