"""Files, paths and settings that are hostile or lead nowhere: one line each, and nothing that a terminal obeys."""

import importlib.util
import json
import logging
import os
import re
import shutil
import time
from pathlib import Path

import peft
import pytest
import torch
from tiny import tiny_llama

from fastkto.cli import OneLine, main
from fastkto.cli.options.launch import config_file
from fastkto.errors import InputError
from fastkto.installation import add_command

ROWS = [{"prompt": f"question {i}?", "completion": f" answer {i}", "label": i % 2 == 0} for i in range(8)]
OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@pytest.fixture
def home(tmp_path, model, monkeypatch):
    """A folder to work in that is the home folder too, with rows in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    write("data.jsonl", ROWS)
    return tmp_path


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(model, *flags, **values):
    given = {"model_name_or_path": str(model), "dataset_name": "data.jsonl", "output_dir": "out", "use_cpu": True}
    Path("config.yaml").write_text(json.dumps(given | {"max_steps": 1, "save_strategy": "no"} | values))
    return main(["train", "config.yaml", *flags])


def only_line(capsys, command="train"):
    """What is said on stderr beside progress bars, which is one line."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastkto")]
    assert len(lines) == 1
    assert lines[0].startswith(f"fastkto {command}: ")
    assert not OBEYED.search(lines[0])
    return lines[0]


BOMB = [
    "a: &a [x]",
    *(f"{own}: &{own} [{', '.join([f'*{other}'] * 9)}]" for own, other in zip("bcdef", "abcde", strict=True)),
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n".join(BOMB), "line 4: got '*c', expected at most 20 aliases"),
        ("a: &a [*a]", "line 1: got '*a', expected at most 20 aliases, and none within what it stands for"),
        ("a: " + "[" * 100_000, "line 1: got '21 levels', expected at most 20 lists and mappings"),
        ("a: 1\n" + "b: {" * 30, "expected at most 20 lists and mappings"),
        ("beta: 0.1\nseed: 1\nbeta: 0.2", "line 3: got 'beta', expected a key that is not there already (line 1)"),
        ("model_init_kwargs: {a: 1,\n  a: 2}", "line 2: got 'a', expected a key that is not there already (line 1)"),
        ("? [a]\n: 1", "line 1: got 'a list or mapping as a key', expected a word"),
        ('"\\e]0;owned\\a": 1', r"line 1, \x1b]0;owned\x07: got 1, expected the name of a field"),
        ('"a\\nfastkto train: all is well": 1', r"line 1, a\nfastkto train: all is well: got 1"),
        ('run_name: "\\e[2J"\nloss_type: "\\e[2J"', r"loss_type: got '\x1b[2J', expected one of"),
        ("a\x1b: 1", "line 1: got 'unacceptable character #x001b"),
    ],
)
def test_C10_a_hostile_yaml_is_one_line_at_once(text, words, home, capsys):
    Path("hostile.yaml").write_text(text)
    start = time.monotonic()
    assert main(["train", "hostile.yaml"]) == 1
    assert words in only_line(capsys)
    assert time.monotonic() - start < 5


def test_C10_a_reader_is_read_as_carefully(home, model, capsys):
    Path("reader.yaml").write_text("\n".join(BOMB))
    assert main(["data", "data.jsonl", "--model", str(model), "--reader", "reader.yaml"]) == 1
    assert "reader.yaml line 4: got '*c', expected at most 20 aliases" in only_line(capsys, "data")


def test_C10_no_text_of_the_rows_reaches_the_terminal_as_it_is(home, model, capsys, caplog):
    rows = [{"prompt": f"\x1b[31m{i}", "completion": "\x07\x9b1m\u202e", "label": i % 2 == 0} for i in range(8)]
    write("rows.jsonl", [row | {"\x1b[2J": 1, "source": f"\x1b[5m{i % 2}"} for i, row in enumerate(rows)])
    assert main(["data", "rows.jsonl", "--model", str(model)]) == 0
    shown = capsys.readouterr().out
    assert not OBEYED.search(shown)
    assert r"not used: \x1b[2J" in shown
    assert r"\x1b[5m1: 0 desirable, 4 undesirable" in shown
    assert any("\x1b" in record.getMessage() for record in caplog.records)
    assert not any(OBEYED.search(logging.lastResort.format(record)) for record in caplog.records)
    assert isinstance(logging.lastResort.formatter, OneLine)
    write("rows.jsonl", [row | {"label": "\x1b[31mup"} for row in rows])
    assert main(["data", "rows.jsonl", "--model", str(model)]) == 1
    assert r"got '\x1b[31mup', expected true" in only_line(capsys, "data")
    assert train(model, dataset_name="rows\x1b[2J.jsonl") == 1
    assert r"rows\x1b[2J.jsonl" in only_line(capsys)


def test_C10_rows_nested_too_deeply(home, model, capsys):
    Path("data.jsonl").write_text(json.dumps(ROWS[0])[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    assert train(model) == 1
    assert "expected JSON in line 1. The reader says: it is nested too deeply" in only_line(capsys)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_init_kwargs": {"nonsense": 1}}, "model_init_kwargs: got 'nonsense', expected a keyword that is known"),
        ({"model_init_kwargs": "{broken"}, "model_init_kwargs: got '{broken', expected a mapping as JSON"),
        ({"accelerator_config": {"nonsense": 1}}, "accelerator_config: got 'nonsense', expected a keyword"),
        ({"lr_scheduler_kwargs": {"nonsense": 1}}, "lr_scheduler_kwargs: got 'nonsense', expected some of"),
        ({"gradient_checkpointing_kwargs": {"nonsense": 1}}, "gradient_checkpointing_kwargs: got 'nonsense', expected"),
        ({"report_to": "clearml"}, "report_to: got 'clearml', expected a package that is installed. Run `pip install"),
        ({"report_to": ["none", "wandbb"]}, "report_to: got 'wandbb', expected all, none, or some of"),
        ({"gradient_accumulation_steps": 0}, "line 1, gradient_accumulation_steps: got 0, expected a whole number"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: got 0.1, expected 0"),
        ({"model_revision": "v2"}, "model_revision: got 'v2', expected none with the folder"),
        ({"model_init_kwargs": {"revision": "v2"}}, "model_init_kwargs: got 'v2', expected none with the folder"),
        ({"dataset_config": "en"}, "dataset_config: got 'en', expected none with a file"),
        ({"mixed_precision": "bf16"}, "mixed_precision: got 'bf16', expected the name of a field. Set bf16 or fp16"),
        (
            {"dynamo_backend": "inductor"},
            "dynamo_backend: got 'inductor', expected the name of a field. Set torch_c",
        ),
        ({"use_fsdp": True}, "use_fsdp: got True, expected the name of a field. It is one of accelerate's"),
        ({"accelerate_config": "zero9"}, "accelerate_config: got 'zero9', expected a YAML file that exists, or one of"),
    ],
)
def test_C11_B17_settings_that_lead_nowhere(values, words, home, model, capsys):
    assert train(model, **values) == 1
    assert words in only_line(capsys)
    assert not Path("out").exists()


def test_C11_chat_template_kwargs_that_are_a_list(home, model, capsys):
    turn = {"prompt": [{"role": "user", "content": "?"}], "completion": [{"role": "assistant", "content": "!"}]}
    write("data.jsonl", [turn | {"label": i % 2 == 0, "chat_template_kwargs": ["x"]} for i in range(4)])
    assert train(model) == 1
    assert "row 0, column 'chat_template_kwargs': got ['x'], expected a mapping" in only_line(capsys)


@pytest.mark.parametrize(
    "line", ['{"step": 1, "loss": "low"}', '{"step": "one", "loss": 1}', '{"step": 1, "loss": null}']
)
def test_C11_text_among_the_metrics(line, home, capsys):
    Path("metrics.jsonl").write_text(line + "\n")
    assert main(["report", "."]) == 1
    assert "metrics.jsonl" in (said := only_line(capsys, "report"))
    assert "step" in said


@pytest.mark.parametrize("change", [{"peft_type": "NEWER"}, {"peft_type": ["LORA"]}, {"r": "x"}, None])
def test_C11_an_adapter_that_peft_does_not_know(change, home, model, capsys):
    peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=2)).save_pretrained("adapter")
    config = Path("adapter/adapter_config.json")
    config.write_text(json.dumps([] if change is None else json.loads(config.read_text()) | change))
    assert main(["merge", "adapter", "--model", str(model), "--output_dir", "merged"]) == 1
    assert "ADAPTER_DIR: got 'adapter', expected an adapter that" in only_line(capsys, "merge")


def test_C11_a_checkpoint_with_a_scaler_that_is_no_tensors(home, model, capsys):
    assert train(model, save_strategy="steps", save_steps=1) == 0
    torch.save(print, "out/checkpoint-1/scaler.pt")
    assert train(model, resume_from_checkpoint="out/checkpoint-1", max_steps=2) == 1
    assert "expected no scaler.pt, which belongs to fp16" in only_line(capsys)


def test_C11_bench_without_its_extra(home, model, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "trl" else real(name, *more))
    assert main(["bench", "--model", str(model), "--systems", "trl", "fastkto"]) == 1
    assert f"Run: {add_command('bench', 'trl')}" in only_line(capsys, "bench")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("https://example.org/rows.jsonl", "addresses are not read. Download it"),
        ("s3://bucket/rows.jsonl", "addresses are not read. Download it"),
        ("-", "expected a file on disk: rows are read more than once. Write it to a file first"),
        ("/dev/stdin", "expected a file on disk"),
        ("pipe.jsonl", "expected a file on disk"),
        ("pipe*", "Correct the pattern"),
    ],
)
def test_C12_what_is_no_file(source, words, home, model, capsys):
    os.mkfifo("pipe.jsonl")
    assert train(model, dataset_name=source) == 1
    assert words in only_line(capsys)


def test_C12_the_home_folder_in_every_path(home, model, capsys):
    Path("chat.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    Path("base").symlink_to(model)
    shutil.copy("data.jsonl", "more.jsonl")
    parts = [{"path": "json", "data_files": "~/data.jsonl"}, {"path": "~/more.jsonl"}]
    paths = {"output_dir": "~/run", "ref_cache_dir": "~/cache", "chat_template": "~/chat.jinja", "datasets": parts}
    saving = {"save_strategy": "steps", "save_steps": 1, "precompute_ref_log_probs": True, "dataset_name": None}
    assert train("~/base", **paths, **saving) == 0
    shutil.move("config.yaml", "kept.yaml")
    resume = ["--resume_from_checkpoint", "~/run/checkpoint-1", "--max_steps", "2"]
    assert main(["train", "--config", "~/kept.yaml", *resume]) == 0
    assert main(["report", "~/run"]) == 0
    assert main(["data", "~/data.jsonl", "--model", "~/base", "--html", "~/page.html"]) == 0
    assert {"run", "cache", "page.html"} < {path.name for path in home.iterdir()}
    assert not Path("~").exists()
    assert config_file("~/kept.yaml") == home / "kept.yaml"


def test_D_the_launch_files_of_trl_have_their_names_where_it_is_installed(home, monkeypatch):
    assert config_file("zero2").read_text().startswith("compute_environment")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="TRL's names need TRL"):
        config_file("zero2")


def test_D_any_switch_can_be_turned_off_by_flag(home, model):
    assert train(model, "--no_logging_nan_inf_filter", "--no-use-peft", use_peft=True) == 0
    assert not Path("out/adapter_config.json").exists()


def test_B17_settings_without_effect_are_said_once(home, model, caplog):
    ignored = {"lora_r": 4, "bnb_4bit_quant_type": "fp4", "streaming": True, "do_eval": True, "eval_steps": 2}
    ignored |= {"ref_model_sync_steps": 9, "ref_cache_dir": "cache", "precompute_ref_batch_size": 2}
    assert train(model, **ignored) == 0
    for name in ignored:
        assert caplog.text.count(f"{name} (") == 1, name
    caplog.clear()
    assert train(model, use_peft=True, lora_r=4, output_dir="other") == 0
    assert "without effect" not in caplog.text
