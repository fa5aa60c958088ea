"""The steps that are timed are the same steps, and a comparison of different ones is refused."""

import dataclasses
import json

import pytest
from tiny import tiny_llama, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fastkto.bench.case import Case, full_length, of_lengths, one_token_words
from fastkto.bench.compare import measure, summary
from fastkto.cli import main
from fastkto.errors import InputError

WORDS = ["salt", "iron", "moss", "rain", "clay", "wind"]


def tokenizer():
    """Whole words with their space, and bytes."""
    vocab = {"<pad>": 0, "<|end|>": 1} | {f"Ġ{word}": i + 2 for i, word in enumerate(WORDS)}
    letters = sorted({letter for word in vocab for letter in word} | set(pre_tokenizers.ByteLevel.alphabet()))
    vocab |= {letter: len(vocab) + i for i, letter in enumerate(letters) if letter not in vocab}
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocab)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<|end|>")


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
    with pytest.raises(RuntimeError, match="loss of a and b differ"):
        measure({"a": ("fastkto", case), "b": ("fastkto", case)})


def test_a_system_that_ends_early_says_why(folder):
    case = Case(folder, batch=1, max_length=32, lengths=full_length(2, 32, 2), steps=2)
    with pytest.raises(RuntimeError, match=r"(?s)fastkto ended before step 0:.*per_device_train_batch_size"):
        measure({"fastkto": ("fastkto", case)})


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
