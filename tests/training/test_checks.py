"""B17: what would train nothing, or another thing than the optimizer holds."""

import peft
import pytest
import torch
from tiny import tiny_llama
from tiny_trainer import trainer

from fastkto.errors import InputError


def lora():
    return peft.LoraConfig(r=2, task_type="CAUSAL_LM")


def test_B17_weights_that_are_all_frozen(tmp_path):
    with pytest.raises(InputError, match="^model: got 'only frozen weights', expected weights to train"):
        trainer(tmp_path / "out", model=tiny_llama().requires_grad_(False))
    frozen = peft.get_peft_model(tiny_llama(), lora())
    frozen.requires_grad_(False)
    with pytest.raises(InputError, match="is_trainable=True"):
        trainer(tmp_path / "out", model=frozen)
    assert not (tmp_path / "out").exists()


def test_B17_an_optimizer_over_other_weights(tmp_path, caplog):
    model = tiny_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="^optimizers: got 'an optimizer over .* other tensors', expected one"):
        trainer(tmp_path, model=model, peft_config=lora(), optimizers=(optimizer, None))
    with pytest.raises(InputError, match="^optimizers: got"):
        trainer(tmp_path, optimizers=(torch.optim.SGD(tiny_llama().parameters(), lr=0.1), None))
    model = tiny_llama()
    trainer(tmp_path, model=model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None))
    assert "not in the optimizer" not in caplog.text
    model = tiny_llama()
    head = torch.optim.SGD(model.lm_head.parameters(), lr=0.1)
    trainer(tmp_path, model=model, optimizers=(head, None))
    assert "weights that train are not in the optimizer: model.embed_tokens.weight" in caplog.text


@pytest.mark.parametrize(("rate", "said"), [(1e-6, True), (1e-5, False)])
def test_an_adapter_at_the_rate_of_all_weights_is_said_once(rate, said, tmp_path, warnings):
    trainer(tmp_path, peft_config=lora(), learning_rate=rate)
    trainer(tmp_path, learning_rate=rate)
    lines = [line for line in warnings.messages if "the default for training all weights" in line]
    assert len(lines) == said
