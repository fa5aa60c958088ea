"""Bad input on the command line: one message that names the place and the fix, the right code, nothing written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastkto.cli import main
from fastkto.cli.failures import OURS

ROWS = [
    {"prompt": f"question {i}?", "completion": f" answer {i * i}", "label": i % 2 == 0, "stars": i % 5}
    for i in range(8)
]


@pytest.fixture
def config(tmp_path, model, monkeypatch):
    """A YAML file that trains; tests break one thing in it."""
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    values = {"model_name_or_path": str(model), "dataset_name": "data.jsonl", "output_dir": "out"}

    def write(text="", **changes):
        lines = [f"{key}: {value}" for key, value in (values | changes).items() if value is not None]
        Path("config.yaml").write_text("\n".join([*lines, text]))
        return "config.yaml"

    return write


def contents():
    """Every file below the working directory with its bytes, and every folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path.cwd().rglob("*")}


def refused(capsys, argv, *words, code=1):
    before = contents()
    assert main(argv) == code
    captured = capsys.readouterr()
    for word in words:
        assert word in captured.err, f"{word!r} is not in {captured.err!r}"
    assert [line.startswith(f"fastkto {argv[0]}: ") for line in captured.err.splitlines()].count(True) == 1
    assert "Traceback" not in captured.err
    assert contents() == before


def test_missing_config_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["train", "nowhere.yaml"], "config: got 'nowhere.yaml', expected a YAML file that exists")


def test_broken_yaml_names_file_and_line(capsys, config):
    refused(capsys, ["train", config("beta: [0.1")], "config.yaml line", "valid YAML")
    refused(capsys, ["train", config("beta: 0.1\n  seed: 3")], "config.yaml line 5")


def test_yaml_that_is_a_list(capsys, config):
    Path(config()).write_text("- beta: 0.1\n")
    refused(capsys, ["train", "config.yaml"], "config.yaml", "a mapping")


def test_empty_yaml(capsys, config):
    Path(config()).write_text("")
    refused(capsys, ["train", "config.yaml"], "a mapping")


def test_yaml_of_another_encoding(capsys, config):
    Path(config()).write_bytes("run_name: naïve".encode("latin-1"))
    refused(capsys, ["train", "config.yaml"], "UTF-8")


def test_yaml_does_not_build_python_objects(capsys, config):
    refused(capsys, ["train", config("run_name: !!python/object/apply:os.getcwd []")], "config.yaml line 4")


def test_unknown_key_has_its_line_and_nearest_name(capsys, config):
    refused(capsys, ["train", config("learning_rat: 1.0e-6")], "config.yaml line 4, learning_rat", "'learning_rate'")


def test_unknown_flag_has_its_nearest_name(capsys, config):
    refused(capsys, ["train", config(), "--desirable_wieght", "2"], "'--desirable_weight'", code=2)
    refused(capsys, ["train", config(), "--learning_rat", "2"], "'--learning_rate'", code=2)  # no abbreviations
    refused(capsys, ["data", "data.jsonl", "--model", "m", "--max_lenght", "3"], "'--max_length'", code=2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("learning_rate: abc", ["line 4, learning_rate", "'abc'", "a number"]),
        ("learning_rate: [1, 2]", ["line 4, learning_rate", "a number"]),
        ("max_steps: 2.5", ["line 4, max_steps", "an integer"]),
        ("max_steps: true", ["line 4, max_steps", "an integer"]),
        ("seed: null", ["line 4, seed", "None", "an integer"]),
        ("use_peft: maybe", ["line 4, use_peft", "true or false"]),
        ("loss_type: dpo", ["line 4, loss_type", "apo_zero_unpaired"]),
        ("lr_scheduler_type: cosin", ["line 4, lr_scheduler_type", "cosine"]),
        ("dtype: int8", ["line 4, dtype", "bfloat16"]),
        ("env: [A, B]", ["line 4, env", "mapping"]),
        ("datasets:\n  - pat: x", ["datasets", "'path'"]),
        ("desirable_weight: heavy", ["desirable_weight", "'heavy'", "a number"]),
        ("per_device_train_batch_size: 1", ["per_device_train_batch_size", "max_tokens_per_forward"]),
        ("load_in_4bit: true", ["load_in_4bit", "use_peft"]),
        ("load_in_4bit: true\nload_in_8bit: true", ["load_in_8bit", "Choose one"]),
        ("label_map: up", ["label_map", "'up'", "WORD=true"]),
        ("label_map: [up=1, up=0]", ["label_map", "one meaning"]),
        ("label_map: [[up]]", ["line 4, label_map", "a list"]),
        ("label_map: {up: [true]}", ["line 4, label_map", "a list"]),
        ("label_map: {up: perhaps}", ["label_map", "WORD=true"]),
        ("label_column: thumbs", ["thumbs"]),
        ("chat_template: nowhere.jinja", ["chat_template", "nowhere.jinja"]),
        ("dataset_train_split: tarin", ["data.jsonl", "tarin"]),
        ("eval_strategy: epoch", ["data.jsonl", "test"]),
        ("resume_from_checkpoint: out/checkpoint-1", ["resume_from_checkpoint", "out/checkpoint-1"]),
        ("accelerate_config: zero9", ["accelerate_config", "zero9"]),
        ("model_init_kwargs: fast", ["model_init_kwargs", "a mapping"]),
        ("max_length: 3", ["max_length", "the shortest has"]),
    ],
)
def test_bad_values(capsys, config, line, words):
    refused(capsys, ["train", config(line)], *words)


def test_bad_value_of_a_flag(capsys, config):
    refused(capsys, ["train", config(), "--learning_rate", "abc"], "--learning_rate", "'abc'", code=2)
    refused(capsys, ["train", config(), "--loss_type", "dpo"], "apo_zero_unpaired", code=2)
    refused(capsys, ["train", config(), "--label_map", "up:true"], "label_map", "up:true")


def test_a_config_file_has_one_place(capsys, config):
    refused(capsys, ["train", config(), "--config", "config.yaml"], "two config files", code=2)
    refused(capsys, ["train", "--use_peft", "true", config()], "'config.yaml'", code=2)


def test_what_to_train_is_not_named(capsys, config):
    refused(capsys, ["train"], "nothing was given", "usage: fastkto train", "--model_name_or_path", code=2)
    refused(capsys, ["train", config(model_name_or_path=None)], "model_name_or_path", "--model_name_or_path")
    refused(capsys, ["train", config(dataset_name=None)], "dataset_name")


def test_files_that_are_not_there(capsys, config):
    refused(capsys, ["train", config(dataset_name="nowhere.jsonl")], "'nowhere.jsonl'")
    refused(capsys, ["train", config(model_name_or_path="./nowhere")], "model_name_or_path", "./nowhere")
    Path("empty").mkdir()
    refused(capsys, ["train", config(model_name_or_path="empty")], "'empty'", "tokenizer")
    Path("empty/adapter_config.json").write_text("{}")
    refused(capsys, ["train", config(model_name_or_path="empty")], "'empty'", "fastkto merge")


def test_damaged_weights(capsys, config, model):
    shutil.copytree(model, "damaged")
    weights = Path("damaged/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(capsys, ["train", config(model_name_or_path="damaged")], "damaged")


def test_output_dir_that_is_a_file(capsys, config):
    Path("taken").write_text("mine")
    refused(capsys, ["train", config(output_dir="taken")], "output_dir", "taken")


def test_a_refused_run_leaves_an_old_output_as_it_is(capsys, config):
    Path("out").mkdir()
    Path("out/model.safetensors").write_text("precious")
    refused(capsys, ["train", config("label_threshold: 3")], "label")
    refused(capsys, ["train", config("resume_from_checkpoint: out")], "resume_from_checkpoint")


def test_rows_that_cannot_be_trained_on(capsys, config):
    Path("data.jsonl").write_text(json.dumps(ROWS[0] | {"label": "good"}) + "\n")
    refused(capsys, ["train", config()], "row 0", "'good'", "--label_map")
    Path("data.jsonl").write_text("")
    refused(capsys, ["train", config()], "at least one row")
    Path("data.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    refused(capsys, ["train", config()], "dataset", "Add rows")


def test_chat_template_with_a_syntax_error_names_its_line(capsys, config):
    Path("chat.jinja").write_text("{{ messages }}\n{% for m in messages %}")
    refused(capsys, ["train", config(), "--chat_template", "chat.jinja"], "chat.jinja line 2")
    refused(capsys, ["data", "data.jsonl", "--model", "./none", "--chat_template", "chat.jinja"], "./none")


def test_data_refuses_what_train_refuses(capsys, config, model):
    refused(capsys, ["data", "nowhere.jsonl", "--model", str(model)], "'nowhere.jsonl'")
    refused(capsys, ["data", "data.jsonl", "--model", str(model), "--label_map", "up"], "label_map")
    refused(capsys, ["data", "data.jsonl", "--model", str(model), "--per_device_train_batch_size", "1"], "at least 2")
    refused(capsys, ["data", "data.jsonl"], "--model", code=2)


def test_unknown_command_has_its_nearest_name(capsys):
    assert main(["trian"]) == 2
    assert "'train'" in capsys.readouterr().err
    assert main(["--what"]) == 2


def test_nothing_given_is_a_wrong_command_line(capsys):
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: fastkto COMMAND")


def test_a_bug_keeps_its_traceback(config, monkeypatch):
    def broken(*_):
        raise KeyError("a bug")

    monkeypatch.setattr("fastkto.cli.commands.train.set_up", broken)
    with pytest.raises(KeyError):
        main(["train", config()])


def test_a_value_error_of_our_own_code_is_a_bug(config, monkeypatch):
    def broken(*_):
        exec(compile("dict(zip([1], [], strict=True))", f"{OURS}/trainer.py", "exec"))

    monkeypatch.setattr("fastkto.cli.commands.train.set_up", broken)
    with pytest.raises(ValueError, match="zip"):
        main(["train", config()])


def test_a_value_error_of_a_library_is_an_answer(capsys, config):
    refused(capsys, ["train", config("load_best_model_at_end: true\neval_strategy: epoch")], "load_best_model_at_end")


def test_debug_shows_the_traceback_of_every_error(config, monkeypatch):
    monkeypatch.setenv("FASTKTO_DEBUG", "1")
    with pytest.raises(ValueError, match=r"nowhere\.jsonl"):
        main(["train", config(dataset_name="nowhere.jsonl")])


def run_process(*argv):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fastkto", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_a_process_ends_with_one_message(config):
    Path("taken").write_text("mine")
    config(output_dir="taken")
    before = contents()
    done = run_process("train", "config.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("fastkto train: output_dir: got 'taken'")
    assert "Traceback" not in done.stderr
    assert torch.cuda.is_available() or "bf16 is off" in done.stderr
    assert contents() == before


def test_help_and_version_of_the_module():
    assert "fastkto train config.yaml" in run_process("--help").stdout
    assert run_process("--version").stdout.startswith("fastkto 0.")
