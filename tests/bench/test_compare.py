"""The steps that are timed are the same steps, and a comparison of different ones is refused."""

import dataclasses
import json
import tempfile

import pytest
import torch
from tiny import tiny_llama, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from tolerance import assert_close
from transformers import PreTrainedTokenizerFast

from fastkto.bench import compare, systems
from fastkto.bench.case import DTYPES, SYSTEMS, Case, full_length, of_lengths, one_token_words
from fastkto.bench.compare import measure, summary
from fastkto.bench.sft import _CrossEntropy
from fastkto.cli import main
from fastkto.config import WEIGHT_DTYPES
from fastkto.errors import InputError, ProcessFailed

WORDS = ["salt", "iron", "moss", "rain", "clay", "wind"]


def tokenizer():
    """Whole words with their space, and bytes."""
    vocab = {"<pad>": 0, "<|end|>": 1} | {f"Ġ{word}": i + 2 for i, word in enumerate(WORDS)}
    letters = sorted({letter for word in vocab for letter in word} | set(pre_tokenizers.ByteLevel.alphabet()))
    vocab |= {letter: len(vocab) + i for i, letter in enumerate(letters) if letter not in vocab}
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocab)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<|end|>")


def test_the_names_of_the_command_line_are_those_of_the_systems():
    assert (*systems.SYSTEMS,) == SYSTEMS
    assert {*DTYPES} == {*WEIGHT_DTYPES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer().save_pretrained(folder)
    tiny_llama(vocab=len(tokenizer())).save_pretrained(folder)
    return str(folder)


def test_rows_have_the_lengths_that_were_asked_for():
    lengths = [(5, 9, True), (1, 2, False), (30, 70, True)]
    rows = of_lengths(lengths, tokenizer(), seed=0)
    for row, (prompt, completion, label) in zip(rows, lengths, strict=True):
        assert len(tokenizer()(row["prompt"])["input_ids"]) == prompt
        assert len(tokenizer()(row["completion"])["input_ids"]) + 1 == completion
        assert row["label"] is label


def test_a_tokenizer_without_words_is_refused():
    assert len(one_token_words(tokenizer())) == len(WORDS)
    with pytest.raises(InputError, match=r"tokenizer: got .* expected one with words that are one token"):
        one_token_words(tiny_tokenizer())


def test_a_case_survives_the_way_to_its_process():
    case = Case("model", 4, 64, lengths=full_length(4, 64, 2), settings={"max_tokens_per_forward": 9})
    back = Case.from_json(case.to_json())
    assert dataclasses.replace(back, lengths=[tuple(row) for row in back.lengths]) == case


def test_systems_are_compared_before_they_are_reported(folder):
    case = Case(folder, batch=4, max_length=32, lengths=full_length(4, 32, 3), steps=3, threads=1)
    steps = measure({name: (name, case) for name in ("fastkto", "trl", "sft")})
    assert {name: len(taken) for name, taken in steps.items()} == {"fastkto": 2, "trl": 2, "sft": 2}
    for ours, theirs in zip(steps["fastkto"], steps["trl"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    table = summary(steps)
    assert table["fastkto"]["times_as_long"] == 1
    assert table["trl"]["least"] <= table["trl"]["times_as_long"] <= table["trl"]["most"]
    assert all(found["peak_gib"] > 0.1 for found in table.values())


def test_different_steps_are_refused(folder, monkeypatch):
    case = Case(folder, batch=4, max_length=32, lengths=full_length(4, 32, 2), steps=2, threads=1)
    monkeypatch.setattr("fastkto.bench.compare.ALLOWED", {False: {"loss": -1.0}, True: {}})
    with pytest.raises(ProcessFailed, match="loss of a and b differ"):
        measure({"a": ("fastkto", case), "b": ("fastkto", case)})


def test_a_system_that_ends_early_says_why(folder):
    case = Case(folder, batch=1, max_length=32, lengths=full_length(2, 32, 2), steps=2)
    said = r"(?s)fastkto ended before step 0, with exit code 1:.*per_device_train_batch_size"
    with pytest.raises(ProcessFailed, match=said):
        measure({"fastkto": ("fastkto", case)})


def test_a_system_that_is_killed_is_said_to_be(folder, monkeypatch):
    case = Case(folder, batch=4, max_length=32, lengths=full_length(4, 32, 2), steps=2, threads=1)
    start = compare._start

    def killed(*arguments):
        worker = start(*arguments)
        worker.process.kill()
        return worker

    monkeypatch.setattr(compare, "_start", killed)
    with pytest.raises(ProcessFailed, match=r"fastkto ended before step 0, killed by SIGKILL \(out of memory, if"):
        measure({"fastkto": ("fastkto", case)})


def test_a_system_without_room_on_the_gpu_beside_others_is_not_timed(folder, monkeypatch):
    case = Case(folder, batch=4, max_length=32, lengths=full_length(4, 32, 2), steps=2, threads=1)
    step = compare._step
    monkeypatch.setattr(compare, "_step", lambda *arguments: step(*arguments) | {"retries": 2})
    assert measure({"a": ("fastkto", case)})["a"][0]["retries"] == 2
    with pytest.raises(ProcessFailed, match="a: no room on the GPU beside the 1 other systems"):
        measure({"a": ("fastkto", case), "b": ("fastkto", case)})


def test_nothing_is_left_behind(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    case = Case(folder, batch=4, max_length=32, lengths=full_length(4, 32, 2), steps=2, threads=1)
    measure({"fastkto-cached": ("fastkto-cached", case)})
    assert not list(tmp_path.glob("fastkto-bench-*"))


def test_a_failure_is_one_message(folder, capsys):
    assert main(["bench", "--model", folder, "--max_length", "32", "--batch", "1", "--systems", "fastkto"]) == 1
    err = capsys.readouterr().err
    assert "per_device_train_batch_size" in err
    assert err.rstrip().splitlines()[0].startswith("fastkto bench: fastkto ended before step 0")


def test_plain_fine_tuning_is_cross_entropy_of_the_models_own_logits():
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((7, 5), (11, 5), (11,)))
    targets = torch.randint(0, 11, (7,), generator=generator)

    def ours(x, w, b):
        return _CrossEntropy.apply(x, w, targets, b, 2.0, 0.5, [0, 3, 7])

    def plain(x, w, b):
        return torch.nn.functional.cross_entropy(2 * torch.tanh(0.5 * (x @ w.T + b) / 2), targets)

    found = []
    for function, dtype in ((ours, torch.float32), (plain, torch.float64), (plain, torch.float32)):
        x, w = (leaf.detach().to(dtype, copy=True).requires_grad_() for leaf in (hidden, weight))
        loss = function(x, w, bias.to(dtype))
        (3 * loss).backward()
        found.append((loss, x.grad, w.grad))
    for name, *three in zip(("loss", "d hidden", "d weight"), *found, strict=True):
        assert_close(*three, name=name)


def test_plain_fine_tuning_takes_one_forward(folder):
    case = Case(folder, batch=4, max_length=32, lengths=full_length(4, 32, 2), steps=2, threads=1)
    split = dataclasses.replace(case, settings={"max_tokens_per_forward": 40})
    whole, parts = (measure({"sft": ("sft", each)})["sft"][0]["loss"] for each in (case, split))
    assert whole == pytest.approx(parts, rel=1e-6)


def test_the_command_prints_a_table_and_writes_the_figures(folder, tmp_path, capsys):
    output = tmp_path / "bench.json"
    flags = ["--max_length", "32", "--batch", "4", "--steps", "1", "--systems", "fastkto", "sft", "--use_peft"]
    assert main(["bench", "--model", folder, *flags, "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["fastkto", "sft"]
    result = json.loads(output.read_text())
    assert result["summary"]["sft"]["times_as_long"] > 0
    assert {"device", "date", "versions", "commit", "command", "batch", "max_length"} <= set(result)


@pytest.mark.parametrize("flags", [["--batch", "0"], ["--systems", "axolotl"], []])
def test_a_wrong_command_line_is_one_message(capsys, flags):
    assert main(["bench", *flags]) == 2
    assert "Traceback" not in capsys.readouterr().err
