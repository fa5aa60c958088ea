"""`fastkto merge`: the merged model is the adapter's model, and the output is whole or absent."""

import shutil
from pathlib import Path

import peft
import pytest
import torch
from tiny import tiny_llama, tiny_tokenizer
from tolerance import assert_within
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastkto.cli import main

IDS = torch.tensor([[9, 17, 31, 200, 44, 7]])


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(path, base="base", **settings):
    """A base model and an adapter on it that is far from zero; the adapter's logits."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **settings)
    adapted = peft.get_peft_model(model, config).eval()
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.5 * torch.randn_like(parameter)
    adapted.save_pretrained(path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(path)
    with torch.no_grad():
        return adapted(IDS).logits


def save_base(path="base", **config):
    model = tiny_llama(**config)
    model.generation_config.temperature = 0.625
    model.generation_config.do_sample = True
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)


def logits(path):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(path)(IDS).logits


def same_logits(path, expected):
    """Merging re-associates the sums of each layer: fp32 rounding, and nothing more."""
    scale = expected.abs().max().item()
    assert_within((logits(path) - expected).abs().max().item(), 0.0, absolute=1e-5 * scale, name="logits")


@pytest.mark.parametrize(
    ("tied", "settings"),
    [
        (False, {"target_modules": ["q_proj", "down_proj"]}),
        (False, {"target_modules": "all-linear", "use_dora": True}),
        (False, {"target_modules": ["q_proj", "lm_head"]}),
        (True, {"target_modules": ["q_proj"]}),
        (True, {"target_modules": ["q_proj", "lm_head"]}),
        (True, {"target_modules": ["q_proj", "embed_tokens"]}),
        (True, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ],
)
def test_merged_model_is_the_adapters(workplace, capsys, tied, settings):
    save_base(tie_word_embeddings=tied)
    expected = make("adapter", **settings)
    assert (expected - logits("base")).abs().max() > 0.01
    assert main(["merge", "adapter", "--output_dir", "deep/down/merged"]) == 0
    same_logits("deep/down/merged", expected)
    separate = (tied and settings["target_modules"] != ["q_proj"]) or "modules_to_save" in settings
    assert AutoModelForCausalLM.from_pretrained("deep/down/merged").config.tie_word_embeddings == (
        tied and not separate
    )
    assert "nats per token" in capsys.readouterr().out
    assert AutoTokenizer.from_pretrained("deep/down/merged").chat_template == "{{ messages[0]['content'] }}"
    assert AutoModelForCausalLM.from_pretrained("deep/down/merged").generation_config.temperature == 0.625
    assert sorted(path.name for path in Path("deep/down").iterdir()) == ["merged"]
    assert not list(Path("deep/down/merged").glob("adapter*"))


def test_dtype_of_the_saved_weights(workplace, capsys):
    save_base()
    make("adapter", target_modules=["q_proj"])
    assert main(["merge", "adapter", "--output_dir", "own"]) == 0
    assert "float32" in capsys.readouterr().out
    assert main(["merge", "adapter", "--output_dir", "merged", "--dtype", "bfloat16"]) == 0
    model = AutoModelForCausalLM.from_pretrained("merged", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def said(capsys, scale, *arguments, name="default"):
    """What is printed of an adapter that is `scale` from zero on a base in bfloat16."""
    save_base()
    AutoModelForCausalLM.from_pretrained("base", dtype=torch.bfloat16).save_pretrained("base")
    model = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    adapted = peft.get_peft_model(model, config, adapter_name=name)
    for key, parameter in adapted.named_parameters():
        parameter.data += scale if "lora_B" in key else 0
    adapted.save_pretrained("adapter")
    assert main(["merge", "adapter", "--output_dir", "merged", "--overwrite", *arguments]) == 0
    return capsys.readouterr().out


def test_b9_what_the_adapter_does_is_said_beside_what_rounding_does_to_it(workplace, capsys):
    assert "nats per token away from base and adapter's (0.5 allowed)" in said(capsys, 0.1)
    assert "The adapter moves them by up to" in said(capsys, 0.1)
    assert "changes nothing" in said(capsys, 0.0)
    assert "rounding loses most of that: --dtype float32" in said(capsys, 1e-5)
    assert "rounding" not in said(capsys, 1e-5, "--dtype", "float32")


def test_b9_an_adapter_of_another_name_is_found(workplace, capsys):
    assert "adapter/mine in one, bfloat16, tokenizer of base" in said(capsys, 0.1, name="mine")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained("adapter")
    said(capsys, 0.1, name="mine")
    assert AutoTokenizer.from_pretrained("merged").chat_template == "{{ messages[0]['content'] }}"
    shutil.copytree("adapter/mine", "adapter/yours")
    assert main(["merge", "adapter", "--output_dir", "merged", "--overwrite"]) == 1
    assert "the adapters mine, yours" in capsys.readouterr().err


def test_another_base_is_used_when_named(workplace):
    save_base()
    expected = make("adapter", target_modules=["q_proj"])
    Path("base").rename("moved")
    assert main(["merge", "adapter", "--output_dir", "merged"]) == 1
    assert main(["merge", "adapter", "--output_dir", "merged", "--model", "moved"]) == 0
    same_logits("merged", expected)


def test_a_full_folder_is_replaced_only_when_asked(workplace, capsys):
    save_base()
    make("adapter", target_modules=["q_proj"])
    Path("merged").mkdir()
    Path("merged/notes.txt").write_text("mine")
    assert main(["merge", "adapter", "--output_dir", "merged"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert [path.name for path in Path("merged").iterdir()] == ["notes.txt"]
    assert main(["merge", "adapter", "--output_dir", "merged", "--overwrite"]) == 0
    assert not Path("merged/notes.txt").exists()
    assert Path("merged/model.safetensors").exists()
    assert {path.name for path in Path().iterdir()} == {"base", "adapter", "merged"}


def test_the_adapter_or_base_is_never_overwritten(workplace, capsys):
    save_base()
    make("runs/adapter", target_modules=["q_proj"])
    for output in ("runs/adapter", "runs", "."):
        assert main(["merge", "runs/adapter", "--output_dir", output, "--overwrite"]) == 1
        assert "does not hold runs/adapter" in capsys.readouterr().err
    assert main(["merge", "runs/adapter", "--output_dir", "base", "--overwrite"]) == 1
    assert "does not hold base" in capsys.readouterr().err
    assert Path("runs/adapter/adapter_config.json").exists()
    assert Path("base/model.safetensors").exists()


def test_a_merge_that_changes_the_model_is_refused(workplace, capsys, monkeypatch):
    save_base()
    make("adapter", target_modules=["q_proj"])
    monkeypatch.setattr(peft.tuners.lora.LoraModel, "merge_and_unload", lambda self, **_: self.unload())
    assert main(["merge", "adapter", "--output_dir", "deep/merged"]) == 1
    assert "nats per token away from the adapter's" in capsys.readouterr().err
    assert {path.name for path in Path().iterdir()} == {"base", "adapter"}


def test_a_failed_exchange_brings_the_old_folder_back(workplace, monkeypatch):
    save_base()
    make("adapter", target_modules=["q_proj"])
    Path("merged").mkdir()
    Path("merged/notes.txt").write_text("mine")
    rename = __import__("os").rename

    def full_disk(source, target):
        if Path(source).name == "new":
            raise OSError("no space left")
        rename(source, target)

    monkeypatch.setattr("os.rename", full_disk)
    assert main(["merge", "adapter", "--output_dir", "merged", "--overwrite"]) == 1
    assert Path("merged/notes.txt").read_text() == "mine"
    assert {path.name for path in Path().iterdir()} == {"base", "adapter", "merged"}


def test_what_is_no_lora_adapter_is_refused(workplace, capsys):
    save_base()
    assert main(["merge", "base", "--output_dir", "merged"]) == 1
    assert "adapter_config.json" in capsys.readouterr().err
    model = AutoModelForCausalLM.from_pretrained("base")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(model, config).save_pretrained("prompt")
    assert main(["merge", "prompt", "--output_dir", "merged"]) == 1
    assert "PROMPT_TUNING" in capsys.readouterr().err
    Path("file").write_text("")
    assert main(["merge", "prompt", "--output_dir", "file"]) == 1
    assert main(["merge", "prompt"]) == 2
    assert not Path("merged").exists()
