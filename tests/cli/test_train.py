"""`fastkto train` from a YAML file to a saved model, and one file through TRL's command and ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trl
from safetensors.torch import load_file
from tiny import tiny_llama, tiny_tokenizer
from tolerance import assert_within
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastkto.cli import main
from fastkto.cli.options import launch
from fastkto.cli.options.arguments import ModelArguments
from fastkto.cli.options.peft_options import peft_config, quantization_config

TRL_YAML = """
# as in TRL's documentation of `trl kto`
model_name_or_path: model
dataset_name: data
dataset_train_split: train
output_dir: {output}
env:
  HF_HUB_OFFLINE: 1
learning_rate: 5e+0   # YAML 1.1 reads this as text
lr_scheduler_type: constant
optim: sgd
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
num_train_epochs: 2
train_sampling_strategy: sequential
max_length: 64
beta: 0.1
desirable_weight: 1.5
bf16: false
use_cpu: true
lora_r: 8
lora_target_modules: all-linear
logging_steps: 1
save_strategy: "no"
report_to: none
seed: 3
dtype: float32
"""


# transformers 5.5 divides TRL's loss by the micro-batches of a step once more
TRL_KTO = """
import runpy, accelerate
accelerate.Accelerator.gradient_accumulation_steps = 1
runpy.run_module("trl.scripts.kto", run_name="__main__")
"""


def conversation(i, label):
    return {
        "prompt": [{"role": "user", "content": f"Describe number {i}."}],
        "completion": [{"role": "assistant", "content": f"It is {i * i}."}],
        "label": label,
    }


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a tiny model, sixteen rows to train on and four to evaluate on."""
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    Path("data").mkdir()
    for split, numbers in (("train", range(16)), ("test", range(20, 24))):
        rows = "".join(json.dumps(conversation(i, i % 3 > 0)) + "\n" for i in numbers)
        Path(f"data/{split}.jsonl").write_text(rows)
    return tmp_path


def write(path="config.yaml", **changes):
    values = {
        "model_name_or_path": "model",
        "dataset_name": "data",
        "output_dir": "out",
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    Path(path).write_text(json.dumps(values | changes))  # JSON is YAML
    return path


def log(folder="out"):
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_yaml_trains_and_saves_a_model_that_stock_transformers_loads(workplace, capsys):
    assert main(["train", write()]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "out" in printed[-1]
    assert printed[:2] == [
        "train: prompt <- prompt, completion <- completion, label <- label",
        "train: 16 rows to train on, 10 desirable, 6 undesirable; 16 prompts",
    ]
    moved = AutoModelForCausalLM.from_pretrained("out").state_dict()
    start = AutoModelForCausalLM.from_pretrained("model").state_dict()
    assert any(not torch.equal(moved[name], start[name]) for name in start)
    assert AutoTokenizer.from_pretrained("out").chat_template == AutoTokenizer.from_pretrained("model").chat_template
    assert [line["step"] for line in log() if "loss" in line] == [1, 2]


def test_flags_come_before_the_file(workplace):
    assert main(["train", "--config", write(max_steps=3), "--max_steps", "1", "--output-dir=other"]) == 0
    assert [line["step"] for line in log("other") if "loss" in line] == [1]
    assert not Path("out").exists()


def test_flags_alone_train(workplace):
    flags = "--model_name_or_path model --dataset_name data/train.jsonl --output_dir out --max_steps 1 --use_cpu"
    assert main(["train", *flags.split(), "--desirable_weight", "auto", "--max_length", "none"]) == 0
    assert Path("out/model.safetensors").exists()


def test_row_options_and_chat_template_reach_the_data(workplace):
    rows = [{"q": f"How is {i}?", "a": f" Like {i + 1}.", "thumb": ("up", "no")[i % 2]} for i in range(8)]
    Path("votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt_column": "q", "completion_column": "a", "label_column": "thumb"}
    Path("map.yaml").write_text(Path(write(dataset_name="votes.jsonl", **columns)).read_text()[:-1])
    with Path("map.yaml").open("a") as file:
        file.write(', "label_map": {up: true, no: false}}')  # YAML 1.1 reads the key `no` as false
    assert main(["train", "map.yaml"]) == 0
    assert all("rewards/chosen" in line for line in log() if "loss" in line)

    Path("chat.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    assert main(["train", write(chat_template="chat.jinja", output_dir="chat")]) == 0
    assert Path("chat/chat_template.jinja").read_text() == Path("chat.jinja").read_text()


def test_evaluation_uses_the_test_split(workplace):
    assert main(["train", write(eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=2)]) == 0
    assert sum("eval_rewards/margins" in line for line in log()) == 2


def test_mixture_of_datasets_is_split_and_weighted(workplace):
    Path("more.json").write_text(json.dumps([conversation(i, i % 2 == 0) for i in range(30, 42)]))
    parts = [
        {"path": "data", "split": "train", "fraction": 0.5},
        {"path": "json", "data_files": "more.json", "columns": ["prompt", "completion", "label"], "fraction": 0.5},
    ]
    changes = {"dataset_name": None, "datasets": parts, "test_split_size": 0.25, "eval_strategy": "steps"}
    config = write(**changes, num_train_epochs=1, max_steps=-1, per_device_train_batch_size=2, eval_steps=9)
    assert main(["train", config]) == 0
    assert [line["step"] for line in log() if "loss" in line][-1] == 9  # (12 + 12) * 3/4 rows, two a step
    assert sum("eval_loss" in line for line in log()) == 1


def test_one_file_is_split_by_prompt(workplace, caplog):
    rows = [conversation(i // 3, i % 2 == 0) for i in range(36)]
    Path("twelve.json").write_text(json.dumps(rows))
    changes = {"dataset_name": "twelve.json", "test_split_size": 0.25, "eval_strategy": "steps", "one_per_prompt": True}
    config = write(**changes, num_train_epochs=1, max_steps=-1, per_device_train_batch_size=3, eval_steps=3)
    assert main(["train", config]) == 0
    assert [line["step"] for line in log() if "loss" in line][-1] == 3  # 36 * 3/4 rows of 9 prompts, three a step
    assert sum("eval_loss" in line for line in log()) == 1
    assert "9 rows held out for evaluation, 27 left to train on" in caplog.text
    assert "18 rows left out by one_per_prompt" in caplog.text


def test_model_init_kwargs_come_before_the_fields(workplace):
    assert main(["train", write(dtype="float16", model_init_kwargs={"dtype": "bfloat16"})]) == 0
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "bfloat16"


def test_lora_saves_an_adapter_of_the_base_model(workplace):
    config = write(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "v_proj"], gradient_checkpointing=False)
    assert main(["train", config]) == 0
    adapter = json.loads(Path("out/adapter_config.json").read_text())
    assert (adapter["r"], set(adapter["target_modules"])) == (4, {"q_proj", "v_proj"})
    assert adapter["base_model_name_or_path"].endswith("model")


def test_training_resumes_from_the_newest_checkpoint(workplace):
    assert main(["train", write(save_strategy="steps", save_steps=1)]) == 0
    whole = load_file("out/model.safetensors")
    Path("out/model.safetensors").unlink()
    Path("out/checkpoint-2").rename("elsewhere")
    assert main(["train", write(save_strategy="steps", save_steps=1, resume_from_checkpoint=True)]) == 0
    resumed = load_file("out/model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert main(["train", "config.yaml", "--resume_from_checkpoint", "elsewhere", "--max_steps", "3"]) == 0
    assert Path("out/checkpoint-3").exists()


def test_quantisation_names_what_is_missing(workplace, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["train", write(use_peft=True, load_in_4bit=True)]) == 1
    assert "pip install bitsandbytes" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert main(["train", write(use_peft=True, load_in_4bit=True)]) == 1
    assert "no gradient" in capsys.readouterr().err
    assert not Path("out").exists()


def test_quantisation_settings_are_trls():
    ours = {"load_in_4bit": True, "dtype": "bfloat16", "use_bnb_nested_quant": True, "bnb_4bit_quant_storage": "uint8"}
    theirs = trl.get_quantization_config(trl.ModelConfig(**ours)).to_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: object())
        assert quantization_config(ModelArguments(**ours, use_peft=True)).to_dict() == theirs


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora_target_modules": ["all-linear"], "use_dora": True, "lora_task_type": "CAUSAL_LM"},
        {"lora_target_modules": ["q_proj", "v_proj"], "lora_modules_to_save": ["lm_head"], "use_rslora": True},
        {"lora_target_parameters": ["mlp.experts.gate_up_proj"], "lora_r": 4, "lora_alpha": 3, "lora_dropout": 0.25},
    ],
)
def test_lora_settings_are_trls(settings):
    ours = peft_config(ModelArguments(use_peft=True, **settings))
    theirs = trl.get_peft_config(trl.ModelConfig(use_peft=True, **settings))
    assert ours.to_dict() == theirs.to_dict()


def test_several_processes_go_through_accelerate(workplace, monkeypatch):
    for name in launch.SET_BY_LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    launched = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", launched.append)
    assert main(["train", write(num_processes=2), "--main_process_port", "29501"]) == 0
    (arguments,) = launched
    assert (arguments.num_processes, arguments.main_process_port) == (2, 29501)
    assert (arguments.module, arguments.training_script) == (True, "fastkto")
    assert arguments.training_script_args == ["train", "config.yaml", "--main_process_port", "29501"]
    assert not Path("out").exists()

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # in a launched process the same command line trains
    monkeypatch.setattr("fastkto.cli.commands.train.set_up", lambda *_: None)
    monkeypatch.setattr("fastkto.cli.commands.train.train", lambda trainer, _: launched.append(trainer))
    assert main(["train", "config.yaml", "--main_process_port", "29501"]) == 0
    assert launched[1:] == [None]


def test_one_yaml_file_trains_the_same_through_trl_and_fastkto(workplace):
    processes = []
    for name, command in (("trl", ["-c", TRL_KTO]), ("ours", ["-m", "fastkto", "train"])):
        Path(f"{name}.yaml").write_text(TRL_YAML.format(output=name))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(workplace / f"cache-{name}")}
        argv = [sys.executable, *command, "--config", f"{name}.yaml"]
        processes.append(subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()
    start, trl, ours = (load_file(f"{name}/model.safetensors") for name in ("model", "trl", "ours"))
    for name in start:
        moved = (trl[name] - start[name]).abs().max().item()
        assert moved > 1e-4, name
        assert_within((ours[name] - trl[name]).abs().max().item(), 0.0, absolute=1e-3 * moved, name=name)


def test_the_run_that_the_card_names_is_the_same_run(workplace, capsys):
    """One command of the model card, and the last line says what to do next."""
    main(["train", write(), "--learning_rate", "3e-3", "--use_peft", "true", "--lora_r", "4"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("Next: fastkto chat out")
    card = Path("out/README.md").read_text()
    command = next(line for line in card.splitlines() if line.startswith("fastkto train "))
    argv = command.replace("ANOTHER_FOLDER", "again").split()[1:]
    assert main(argv) == 0
    first, second = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("out", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(x, second[name]) for name, x in first.items())
