"""From what the trainer is given to a policy, a tokenizer and an adapter: each checked, each error named."""

import peft
import pytest
import torch
import trl
from datasets import Dataset, DatasetDict
from safetensors.torch import save_file
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
