"""B9: every tensor of the adapter's file and of the base's is used, and none of theirs is missing."""

from pathlib import Path

import peft
import pytest
import torch
from merges import edit_json, edit_weights, save_adapter, save_base

from fastkto.errors import InputError
from fastkto.tools.merge.merging import merge

Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def refused(*words):
    with pytest.raises(InputError) as caught:
        merge(Path("adapter"), Path("merged"))
    for word in words:
        assert word in str(caught.value)
    assert {path.name for path in Path().iterdir()} == {"base", "adapter"}


def without(part):
    return lambda tensors: {name: x for name, x in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without(Q), ("not there", Q)),
        (without(""), ("not there", "base_model.model.lm_head.weight")),
        (without("lm_head"), ("not there", "base_model.model.lm_head.weight")),
        (without("lora_"), ("not there", Q)),
        (lambda x: {name.replace("model.layers", "layers"): y for name, y in x.items()}, ("not there", Q)),
        (lambda x: {name.replace("weight", "default.weight"): y for name, y in x.items()}, ("not there",)),
        (
            lambda x: x | {Q.replace("layers.0", "layers.7"): x[Q].clone()},
            ("have none", "layers.7.self_attn.q_proj"),
        ),
        (lambda x: x | {Q: x[Q][:2].clone()}, ("size mismatch", "layers.0.self_attn.q_proj.lora_A")),
        (lambda x: x | {Q: x[Q] * torch.nan}, ("NaN or inf", "model.layers.0.self_attn.q_proj.weight")),
    ],
)
def test_b9_an_adapters_file_that_is_not_the_adapters_is_refused(change, words):
    save_base()
    save_adapter(modules_to_save=["lm_head"])
    edit_weights("adapter", change)
    refused(*words)


def test_b9_an_adapter_of_another_base_is_refused():
    save_base()
    save_adapter()
    edit_json("adapter/adapter_config.json", target_modules=["c_attn"])
    refused("'adapter'", "c_attn", "--model")


@pytest.mark.parametrize("content", ['{"peft_type": "OF_TOMORROW"}', "{"])
def test_b9_a_config_that_peft_does_not_know_is_refused(content):
    save_base()
    save_adapter()
    Path("adapter/adapter_config.json").write_text(content)
    refused("'adapter'", "peft 0.")


def test_b9_a_folder_without_the_adapters_weights_is_refused():
    save_base()
    save_adapter()
    Path("adapter/adapter_model.safetensors").unlink()
    refused("adapter_model.safetensors", "Copy the whole folder")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("layers.1.mlp.up_proj"), ("'base'", "not there: model.layers.1.mlp.up_proj.weight")),
        (lambda x: x | {"vision.weight": torch.ones(3)}, ("'base'", "not its: vision.weight")),
        (lambda x: x | {"model.norm.weight": torch.ones(3)}, ("'base'", "shapes")),
    ],
)
def test_b9_a_base_that_is_not_whole_is_refused(change, words):
    save_base()
    save_adapter()
    edit_weights("base", change)
    refused(*words)


def test_b9_a_base_with_more_layers_than_its_files_is_refused():
    save_base()
    save_adapter()
    edit_json("base/config.json", num_hidden_layers=4)
    refused("'base'", "model.layers.2.input_layernorm.weight", "more")


def test_b9_quantised_weights_are_not_added_to():
    save_base()
    save_adapter()
    edit_json("base/config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    refused("quantised", "--model")


def test_b9_a_tensor_that_peft_does_not_load_is_refused(monkeypatch):
    load = peft.peft_model.set_peft_model_state_dict
    save_base()
    save_adapter()
    monkeypatch.setattr(
        "peft.peft_model.set_peft_model_state_dict",
        lambda model, tensors, **kwargs: load(model, without(Q)(tensors), **kwargs),
    )
    refused("have none", Q)
