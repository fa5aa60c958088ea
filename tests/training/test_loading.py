"""From what the trainer is given to a policy, a tokenizer and an adapter: each checked, each error named."""

import json
from pathlib import Path

import peft
import pytest
import torch
import trl
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file
from stock_models import family
from tiny import tiny_llama, tiny_tokenizer
from tiny_trainer import config, noisy, rows, trainer

from fastkto import KTOTrainer
from fastkto.errors import InputError
from fastkto.training.faults.checkpoints import checkpoint_folder
from fastkto.training.loading import load_policy, load_tokenizer

LORA = peft.LoraConfig(target_modules=["q_proj"])


@pytest.fixture
def folder(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def with_nan(value=float("nan")):
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    return model


def test_a_model_by_folder_is_float32_unless_asked_otherwise(folder, tmp_path):
    tiny_llama().bfloat16().save_pretrained(folder)
    for kwargs, dtype in (
        (None, torch.float32),
        ({"dtype": "auto"}, torch.bfloat16),
        ({"dtype": "float16"}, torch.half),
    ):
        args = config(tmp_path, model_init_kwargs=kwargs)
        assert load_policy(folder, args, None).dtype == dtype
        assert args.model_init_kwargs == kwargs, "the user's keywords stay as they are"
    args = config(tmp_path, model_init_kwargs={"attn_implementation": "eager"})
    assert load_policy(folder, args, None).config._attn_implementation == "eager"


def no_eos():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


def too_large():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    return tokenizer


def adapted():
    return peft.get_peft_model(tiny_llama(), LORA)


BAD = {
    "NaN weights": (lambda: {"model": with_nan()}, r"^model: got 'model\.layers\.1\.mlp\.up_proj\.weight holds NaN"),
    "inf weights": (lambda: {"model": with_nan(float("inf"))}, "^model: got .*finite weights"),
    "NaN in the reference": (lambda: {"ref_model": with_nan()}, "^ref_model: got .*finite weights"),
    "a reference by name": (lambda: {"ref_model": "some/model"}, "^ref_model: got 'some/model', expected a loaded"),
    "no EOS": (lambda: {"processing_class": no_eos()}, "^processing_class: .*EOS token"),
    "a tokenizer too large": (lambda: {"processing_class": too_large()}, "^processing_class: got 265, .*264"),
    "no tokenizer": (lambda: {"processing_class": object()}, "^processing_class: got 'object'"),
    "two adapters": (lambda: {"model": adapted(), "peft_config": LORA}, "^peft_config: got .*Leave peft_config out"),
    "no adapter config": (lambda: {"peft_config": {"r": 4}}, "^peft_config: got 'dict', expected a peft.PeftConfig"),
    "no dataset": (lambda: {"train_dataset": None}, "^train_dataset: got None"),
    "a list": (lambda: {"train_dataset": rows(4).to_list()}, "^train_dataset: got 'list'"),
    "one row": (lambda: {"train_dataset": rows(1)}, "^dataset: got '1 rows with one row'"),
    "one prompt": (lambda: {"train_dataset": Dataset.from_list([rows(1)[0]] * 4)}, "^dataset: .*one prompt"),
    "model keywords": (lambda: {"model_init_kwargs": {"dtype": "auto"}}, "^model_init_kwargs: got .*already loaded"),
    "quantisation": (lambda: {"quantization_config": object()}, "^quantization_config: got .*already loaded"),
    "prompts too long": (lambda: {"max_length": 4}, "^max_length: got 4"),
    "an unknown backend": (lambda: {"head_backend": "cublas"}, "cublas"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named_before_anything_is_written(what, tmp_path):
    make, message = BAD[what]
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, **make())
    folder = tmp_path / "out"
    assert not folder.exists() or not list(folder.iterdir())


def test_model_and_reference_may_not_be_one_object(tmp_path):
    model = tiny_llama()
    with pytest.raises(InputError, match="^ref_model: got 'the same object as model'"):
        trainer(tmp_path, model=model, ref_model=model)


def test_an_unknown_dtype_is_named(folder, tmp_path):
    with pytest.raises(InputError, match="^dtype: got 'float33', expected one of"):
        load_policy(folder, config(tmp_path, model_init_kwargs={"dtype": "float33"}), None)


def test_a_missing_padding_token_is_the_eos_and_masked(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    model = tiny_llama()
    t = trainer(tmp_path, model=model, processing_class=tokenizer, packing=False)
    assert tokenizer.pad_token == "<|end|>"
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.eos_token_id
    losses = []
    for each in (tokenizer, tiny_tokenizer()):
        t = trainer(tmp_path, processing_class=each, ref_model=noisy(tiny_llama()), packing=False)
        losses.append(t.train().training_loss)
    assert losses[0] == losses[1], "padding is masked by position, not by its id"


def test_a_vocabulary_padded_beyond_the_tokenizer_is_fine(tmp_path):
    assert trainer(tmp_path, model=tiny_llama(vocab=320)).train().global_step == 3


def test_the_tokenizer_of_a_peft_model_is_its_base_models(folder, tmp_path):
    model = load_policy(folder, config(tmp_path), None)
    tokenizer = load_tokenizer(None, peft.get_peft_model(model, LORA), config(tmp_path))
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


def test_arguments_may_be_left_out(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = KTOTrainer(folder, train_dataset=rows())
    assert t.args.output_dir == "model-KTO"
    assert (t.args.beta, t.args.learning_rate, t.args.per_device_train_batch_size) == (0.1, 1e-6, 8)


def test_arguments_of_another_library_are_refused_by_name(tmp_path):
    for args, found in ((trl.KTOConfig(str(tmp_path / "out"), bf16=False), "trl.KTOConfig"), ({}, "builtins.dict")):
        with pytest.raises(InputError, match=rf"^args: got '{found}', expected a fastkto.KTOConfig"):
            KTOTrainer(tiny_llama(), args=args, train_dataset=rows(), processing_class=tiny_tokenizer())
    assert not (tmp_path / "out").exists()


def test_checkpoint_folder(tmp_path):
    assert checkpoint_folder(None, str(tmp_path)) is None
    assert checkpoint_folder(False, str(tmp_path)) is None
    for number in (2, 10):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text('{"global_step": 2}')
        save_file({"w": torch.ones(2)}, tmp_path / f"checkpoint-{number}" / "model.safetensors")
    assert checkpoint_folder(True, str(tmp_path)) == str(tmp_path / "checkpoint-10")
    assert checkpoint_folder(tmp_path / "checkpoint-2", None) == str(tmp_path / "checkpoint-2")


# What would fail or go wrong later


@pytest.mark.parametrize("name", ["lomo", "adalomo", "galore_adamw_layerwise", "apollo_adamw_layerwise"])
def test_an_optimizer_that_steps_within_the_backward_is_refused(name, tmp_path):
    """One NaN would be in every weight before it could be seen."""
    with pytest.raises(InputError, match=f"^optim: got '{name}', expected an optimizer that steps once all"):
        trainer(tmp_path, optim=name)


def test_a_generation_config_that_cannot_be_saved_is_named_before_training(tmp_path):
    model = tiny_llama()
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = False
    with pytest.raises(InputError, match="^generation_config: got .* one that can be saved, but"):
        trainer(tmp_path, model=model)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_token_that_the_model_has_not_is_named_by_its_row(streamed, tmp_path):
    ids = [{"prompt_ids": [5], "completion_ids": [6 + i, 7], "label": i % 2 == 0} for i in range(8)]
    ids[5]["completion_ids"][1] = 264
    data = Dataset.from_list(ids)
    data = data.to_iterable_dataset() if streamed else data
    with pytest.raises(InputError, match="^row 5, column 'completion_ids': got 264, expected ids below 264"):
        trainer(tmp_path, train_dataset=data, train_sampling_strategy="sequential").train()


def test_names_that_trl_has(tmp_path):
    t = trainer(tmp_path, ref_model=tiny_llama(seed=1))
    assert t.ref_model is t.reference.model
    assert t.aux_loss_enabled is False
    with pytest.raises(TypeError, match="^train_dataset: got 'DatasetDict'"):
        trainer(tmp_path, train_dataset=DatasetDict(train=Dataset.from_list([])))


def with_config(folder, **changes):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 4}, "^model: got 'no model.layers.2.* and .* more in its file', expected a file with"),
        ({"num_hidden_layers": 1}, "^model: got 'model.layers.1.* in its file', expected a config with a place"),
        ({"attention_bias": True}, "^model: got 'no model.layers.0.self_attn.k_proj.bias and"),
        ({"vocab_size": 300, "ignore": True}, "^model: got 'no (lm_head|model.embed_tokens).weight"),
    ],
    ids=["layers missing", "layers left over", "biases missing", "another vocabulary"],
)
def test_weights_that_config_and_file_do_not_agree_on_are_refused_by_name(changes, message, folder, tmp_path):
    kwargs = {"ignore_mismatched_sizes": True} if changes.pop("ignore", False) else None
    with pytest.raises(InputError, match=message):
        load_policy(with_config(folder, **changes), config(tmp_path, model_init_kwargs=kwargs), None)


def test_tied_weights_are_not_missing(tmp_path):
    family("Llama tied").save_pretrained(tmp_path / "model")
    assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")
    load_policy(str(tmp_path / "model"), config(tmp_path), None)


def test_weights_that_are_another_models_are_said_once(folder, tmp_path, warnings):
    file = Path(folder) / "model.safetensors"
    leftovers = {"v_head.weight": torch.ones(1, 4), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    save_file(load_file(file) | leftovers, file, metadata={"format": "pt"})
    load_policy(folder, config(tmp_path), None)
    assert [line for line in warnings.messages if "v_head.weight, for which" in line]


def test_a_bias_that_the_model_has_no_place_for_is_refused(folder, tmp_path):
    file = Path(folder) / "model.safetensors"
    save_file(
        load_file(file) | {"model.layers.0.self_attn.q_proj.bias": torch.ones(4)}, file, metadata={"format": "pt"}
    )
    with pytest.raises(InputError, match="^model: got 'model.layers.0.self_attn.q_proj.bias in its file'"):
        load_policy(folder, config(tmp_path), None)
