"""Stopping and going on, and what a run leaves on disk."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from tiny import CHAT_TEMPLATE, tiny_llama
from tiny_trainer import logp, noisy, rows, steps, trainer
from tolerance import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback

from fastkto.errors import InputError

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


def adapter(**changes):
    return peft.get_peft_model(tiny_llama(), peft.LoraConfig(**{**LORA, "init_lora_weights": False, **changes}))


def curve(t):
    return [
        {k: v for k, v in line.items() if "time" not in k and "second" not in k} for line in t.state.log_history[:-1]
    ]


RUNS = {
    "in the middle of an epoch": {},
    "at the end of an epoch": {"train_dataset": rows(12)},
    "with accumulation": {"gradient_accumulation_steps": 2, "train_dataset": rows(40)},
    "with accumulation and a short last step": {"gradient_accumulation_steps": 3, "train_dataset": rows(22)},
    "a log line less often": {"logging_steps": 2},
    "with a cache": {"precompute_ref_log_probs": True},
    "with a new adapter": {"adapter": "new"},
    "with an adapter passed in": {"adapter": "passed in"},
    "with an adapter of another name": {"adapter": "named"},
    "with a moving reference": {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5},
    "stratified, in workers": {"train_sampling_strategy": "stratified", "dataloader_num_workers": 1},
    "streaming": {"stream": True},
    "with evaluations": {"eval_dataset": rows(6), "eval_strategy": "steps", "eval_steps": 2},
    "with dropout": {"attention_dropout": 0.2, "disable_dropout": False},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_run_that_was_not_stopped(name, tmp_path):
    """Loss curve, metrics file and tokens counted, bit for bit."""

    def make(folder):
        settings = {"train_dataset": rows(20), "max_steps": 6, "save_strategy": "steps", "save_steps": 3, **RUNS[name]}
        settings["model"] = tiny_llama(attention_dropout=settings.pop("attention_dropout", 0.0))
        kind = settings.pop("adapter", None)
        if settings.pop("stream", False):
            settings["train_dataset"] = rows(20).to_iterable_dataset()
        if kind == "new":
            settings["peft_config"] = peft.LoraConfig(**LORA)
        elif kind is not None:
            torch.manual_seed(4)
            name_of_adapter = "mine" if kind == "named" else "default"
            settings["model"] = peft.get_peft_model(
                tiny_llama(), peft.LoraConfig(**LORA, init_lora_weights=False), adapter_name=name_of_adapter
            )
        return trainer(tmp_path / folder, lr_scheduler_type="linear", **settings)

    whole = make("whole")
    whole.train()
    (tmp_path / "resumed" / "out").mkdir(parents=True)
    stopped = tmp_path / "resumed" / "out" / "metrics.jsonl"
    file = (tmp_path / "whole" / "out" / "metrics.jsonl").read_text()
    # the stopped run had gone on for a while after its checkpoint, and died in the middle of a line
    stopped.write_text(file[: len(file) * 3 // 4])
    resumed = make("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "out" / "checkpoint-3"))
    assert curve(resumed) == curve(whole)
    lines = [json.loads(line) for line in stopped.read_text().splitlines()]
    assert lines == json.loads(json.dumps(resumed.state.log_history))
    tokens = [line["num_tokens"] for line in lines if "num_tokens" in line]
    assert tokens == sorted(tokens)
    assert len(tokens) == len(set(tokens))
    for (key, ours), theirs in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), key


def test_a_finished_run_can_be_taken_further(tmp_path):
    first = trainer(tmp_path, save_strategy="steps", save_steps=3)
    first.train()
    further = trainer(tmp_path, max_steps=5)
    further.train(resume_from_checkpoint=True)
    assert further.state.global_step == 5
    assert [line["step"] for line in steps(further)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("what", ["missing", "empty", "a model"])
def test_what_is_no_checkpoint_is_named_before_anything_is_written(what, tmp_path):
    t = trainer(tmp_path)
    folder = tmp_path / "somewhere"
    if what in ("empty", "a model"):
        folder.mkdir()
    if what == "a model":
        tiny_llama().save_pretrained(folder)
    before = copy.deepcopy(t.model.state_dict())
    with pytest.raises(InputError, match="^resume_from_checkpoint: got"):
        t.train(resume_from_checkpoint=str(folder))
    assert not list((tmp_path / "out").iterdir())
    assert all(torch.equal(value, before[key]) for key, value in t.model.state_dict().items())
    assert t.train(resume_from_checkpoint=False).global_step == 3


def test_a_moving_reference_is_not_invented(tmp_path):
    moving = {"sync_ref_model": True, "ref_model_sync_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, **moving).train()
    (tmp_path / "out" / "checkpoint-3" / "reference.pt").unlink()
    t = trainer(tmp_path, **moving)
    with pytest.raises(InputError, match=r"^resume_from_checkpoint: .*holds reference\.pt"):
        t.train(resume_from_checkpoint=True)


# What is on disk

SCORE = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, *folders = sys.argv[1:]
rows, result = json.load(sys.stdin), []
for folder in folders:
    if folder.endswith("full"):
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        ids = torch.tensor([tokenizer.apply_chat_template(row["prompt"] + row["completion"])["input_ids"]])
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[len(prompt) - 1 :]
        result.append(logps.sum().item())
assert "trl" not in sys.modules and "fastkto" not in sys.modules
print(json.dumps(result))
"""


def test_a_fresh_process_with_stock_libraries_gives_the_same_log_probs(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    ours, exact = [], []
    for kind in ("full", "lora", "adapter passed in"):
        model, config = AutoModelForCausalLM.from_pretrained(tmp_path / "base"), None
        if kind == "lora":
            config = peft.LoraConfig(**LORA)
        elif kind == "adapter passed in":
            model = peft.get_peft_model(model, peft.LoraConfig(**LORA, init_lora_weights=False))
        t = trainer(tmp_path, model=model, peft_config=config, learning_rate=1e-2)
        t.train()
        t.save_model(tmp_path / kind)
        t.model.eval()
        with torch.no_grad():
            items = [t.train_dataset[i] for i in range(4)]
            batch = t._prepare_inputs(t.data_collator(items))
            ours.append(t.compute_loss(t.model, batch, return_outputs=True)[1].logps)
            wide = copy.deepcopy(t.model).double()
            exact += [logp(wide, x["prompt_ids"], x["completion_ids"]) for x in items]
    folders = [str(tmp_path / name) for name in ("base", "full", "lora", "adapter passed in")]
    command = [sys.executable, "-c", SCORE, *folders]
    found = subprocess.run(command, input=json.dumps(rows(4).to_list()), text=True, check=True, capture_output=True)
    fresh = torch.tensor(json.loads(found.stdout), dtype=torch.float32)
    assert_close(torch.cat(ours), torch.stack(exact), fresh, name="log-probs")
    assert_close(fresh, torch.stack(exact), torch.cat(ours), name="log-probs of the fresh process")


def test_the_output_directory_is_complete(tmp_path):
    model = tiny_llama()
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    t = trainer(tmp_path, model=model, save_strategy="steps", save_steps=3, precompute_ref_log_probs=True)
    t.train()
    t.save_model()
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-3"):
        names = {path.name for path in folder.iterdir()}
        assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template == CHAT_TEMPLATE
        assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.7
        stock = AutoModelForCausalLM.from_pretrained(folder)
        assert stock.config.eos_token_id == tokenizer.eos_token_id
        assert all(torch.equal(value, t.model.state_dict()[key]) for key, value in stock.state_dict().items())
    assert {"metrics.jsonl", "ref_logps.sqlite"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_adapters_on_disk_load_as_one_adapter(tmp_path):
    t = trainer(tmp_path, model=adapter(), learning_rate=1e-2)
    t.train()
    t.save_model()
    loaded = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "out")
    assert list(loaded.peft_config) == ["default"]
    trained = peft.get_peft_model_state_dict(t.model)
    assert all(torch.equal(value, trained[key]) for key, value in peft.get_peft_model_state_dict(loaded).items())
    assert not list((tmp_path / "out").glob("*/adapter_model.*")), "what the reference is made of is the run's own"


# The best model and early stopping


def test_the_best_model_by_margin_and_early_stopping(tmp_path):
    """The margin on the evaluation rows falls when their labels are the opposite: the first checkpoint is the best."""
    opposite = rows(12, desirable=lambda i: i % 2 == 1)
    t = trainer(
        tmp_path,
        eval_dataset=opposite,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=12,
        learning_rate=5e-3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_rewards/margins",
        greater_is_better=True,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    t.train()
    margins = [line["eval_rewards/margins"] for line in t.state.log_history if "eval_rewards/margins" in line]
    best = margins.index(max(margins)) + 1
    assert t.state.global_step == best + 2 < 12
    assert Path(t.state.best_model_checkpoint).name == f"checkpoint-{best}"
    assert t.state.best_metric == max(margins)
    assert t.evaluate()["eval_rewards/margins"] == margins[best - 1]


def test_the_best_adapter_comes_back(tmp_path):
    t = trainer(
        tmp_path,
        model=adapter(),
        eval_dataset=rows(12, desirable=lambda i: i % 2 == 1),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        learning_rate=5e-3,
        load_best_model_at_end=True,
        metric_for_best_model="rewards/margins",
        greater_is_better=True,
    )
    t.train()
    margins = [line["eval_rewards/margins"] for line in t.state.log_history if "eval_rewards/margins" in line]
    assert t.evaluate()["eval_rewards/margins"] == max(margins)


def test_a_second_model_is_never_written(tmp_path):
    t = trainer(tmp_path, ref_model=noisy(tiny_llama()), save_strategy="steps", save_steps=3)
    t.train()
    assert not list((tmp_path / "out").rglob("reference.pt"))
