"""`fastkto data`: what it shows, and that what it passes trains."""

import json
from pathlib import Path

import pytest
from tiny import tiny_llama, tiny_tokenizer

from fastkto.cli import main

ROWS = [{"prompt": f"Say {i}.", "completion": f" It is {i}.", "label": i % 3 == 0} for i in range(12)]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def test_shows_rows_and_counts_and_writes_nothing(workplace, capsys):
    before = sorted(Path.cwd().rglob("*"))
    assert main(["data", "rows.jsonl", "--model", "model", "--per_device_train_batch_size", "4"]) == 0
    shown = capsys.readouterr().out
    assert "4 desirable, 8 undesirable" in shown
    assert shown.count("scored") == 3
    assert "micro-batches of 4" in shown
    assert sorted(Path.cwd().rglob("*")) == before


def test_options_reach_the_preview(workplace, capsys):
    Path("votes.jsonl").write_text("".join(json.dumps({**row, "label": i % 5}) + "\n" for i, row in enumerate(ROWS)))
    argv = ["data", "votes.jsonl", "--model", "model", "--label_threshold", "3", "--max_length", "10"]
    assert main([*argv, "--desirable_weight", "auto"]) == 0
    shown = capsys.readouterr().out
    assert "4 desirable, 8 undesirable" in shown
    assert "max_length=10" in shown
    assert "desirable_weight=2" in shown


def test_what_it_passes_trains_with_the_same_options(workplace, capsys):
    options = ["--per_device_train_batch_size", "5", "--max_length", "12", "--seed", "7"]
    assert main(["data", "rows.jsonl", "--model", "model", *options]) == 0
    train = "train --model_name_or_path model --dataset_name rows.jsonl --output_dir out --use_cpu --max_steps 3"
    assert main([*train.split(), *options, "--save_strategy", "no"]) == 0


def test_errors_are_those_of_training(workplace, capsys):
    one_prompt = [{**row, "prompt": "Say it."} for row in ROWS]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in one_prompt))
    assert main(["data", "rows.jsonl", "--model", "model"]) == 1
    shown = capsys.readouterr().err.splitlines()[-1]
    train = "train --model_name_or_path model --dataset_name rows.jsonl --output_dir out --use_cpu"
    assert main(train.split()) == 1
    trained = capsys.readouterr().err.splitlines()[-1]
    assert shown.removeprefix("fastkto data: ") == trained.removeprefix("fastkto train: ")
    assert not Path("out").exists()


def test_A24_every_fault_is_counted_and_the_exit_code_says_whether_it_trains(workplace, capsys):
    rows = [*ROWS, ROWS[0] | {"label": False}, ROWS[1], ROWS[2] | {"prompt": "long " * 99}]
    rows += [ROWS[0] | change for change in ({"label": None}, {"completion": None}, {"prompt": None}, {"label": None})]
    rows = [{"question": row.pop("prompt"), **row, "user": "kim"} for row in map(dict, rows)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["data", "rows.jsonl", "--model", "model", "--prompt_column", "question", "--max_length", "64"]
    assert main(argv) == 1
    shown = capsys.readouterr()
    lines = [
        "prompt <- question, completion <- completion, label <- label; not used: user",
        "no label: 2 rows (15, 18)",
        "no answer: 1 row (16)",
        "no prompt: 1 row (17)",
        "prompt too long: 1 row (14), left out",
        "duplicate: 1 row (13)",
        "contradiction: 2 rows (0, 12)",
    ]
    for line in lines:
        assert line in shown.out
    assert "row 15, column 'label'" in shown.err
    assert main([*argv, "--html", "faults.html"]) == 1
    page = Path("faults.html").read_text(encoding="utf-8")
    assert all(f"<li>{line}" in page for line in lines[1:])
    assert "<h1>rows.jsonl</h1>" in page
    capsys.readouterr()
    assert main([*argv, "--on_unrated", "drop", "--on_empty", "drop"]) == 0
    shown = capsys.readouterr().out
    for line in lines:
        assert line in shown


def test_options_of_the_chat_reach_the_preview(workplace, capsys):
    tiny_tokenizer(chat=False).save_pretrained("model")
    assert main(["data", "rows.jsonl", "--model", "model", "--chat", "true", "--chat_template", "chatml"]) == 0
    assert "s\xb7t\xb7a\xb7n\xb7t\xb7\\n" in capsys.readouterr().out


def test_the_page_and_what_is_chosen(workplace, capsys):
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, ROWS[0] | {"label": False}]))
    argv = ["data", "rows.jsonl", "--model", "model", "--html", "report.html", "--test_split_size", "3"]
    assert main([*argv, "--frac_unique_undesirable", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "chosen       3 rows held out for evaluation, 10 left to train on; no prompt is in both" in shown
    assert "rows left out by frac_unique_undesirable=0.5" in shown
    page = Path("report.html").read_text(encoding="utf-8")
    assert "<h1>rows.jsonl</h1>" in page
    assert "3 rows held out for evaluation" in page


def test_weights_are_shown_in_a_line_and_bad_ones_are_at_fault(workplace, capsys):
    rows = [row | {"votes": i / 4, "weight": 9} for i, row in enumerate(ROWS)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["data", "rows.jsonl", "--model", "model", "--weight_column", "votes"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert (
        "columns      prompt <- prompt, completion <- completion, label <- label, weight <- votes; not used: weight"
        in shown
    )
    assert "row weights  0 to 2.75, mean 1.38; 1 row with weight 0\n" in shown
    with Path("rows.jsonl").open("a") as file:
        file.write(json.dumps(ROWS[0] | {"votes": -1}) + "\n" + json.dumps(ROWS[0]) + "\n")
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert "weight below 0: 1 row (12)" in captured.out
    assert "no weight: 1 row (13)" in captured.out
    assert "row 12, column 'votes': got -1, expected a number from 0 on" in captured.err


def test_a_page_that_cannot_be_written(workplace, capsys):
    assert main(["data", "rows.jsonl", "--model", "model", "--html", "no/report.html"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "html: got 'no/report.html', expected a place where the page can be written" in error
