"""`fastkto init`: its YAML trains as it stands, holds prompts out whole, and says on what each number rests."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import tiny_llama, tiny_tokenizer

from fastkto.cli import main
from fastkto.rows import RowOptions, normalise, read_rows
from fastkto.rows.selection import split_by_prompt
from fastkto.tools.init.looking import LEAST_ROWS
from fastkto.tools.init.memory import Memory, in_words, memory_here
from fastkto.tools.init.settings import LEARNING_RATE


@pytest.fixture
def workplace(tmp_path, monkeypatch, model):
    """A folder with a CSV of thumbs, in which every prompt has two answers."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(model)
    write_thumbs(96, up=lambda i: i % 3 > 0)
    return tmp_path


def write_thumbs(count, up, prompt=lambda i: f"What is {i // 2} and {i // 2}?", path="thumbs.csv"):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completion", "label"])
        writer.writerows([prompt(i), f"It is {i}.", str(up(i)).lower()] for i in range(count))


def init(*flags, model="model", file="thumbs.csv"):
    return main(["init", file, "--model", str(model), *flags])


def written(path="config.yaml"):
    return yaml.safe_load(Path(path).read_text())


def test_the_three_commands(workplace, capsys, monkeypatch):
    assert init() == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("Next: fastkto train config.yaml")
    found = written()
    assert found["chat"] is True
    assert found["learning_rate"] == LEARNING_RATE["all weights"]
    assert found["desirable_weight"] == "auto"
    assert "use_peft" not in found
    assert main(["train", "config.yaml", "--max_steps", "2", "--use_cpu", "--disable_tqdm", "true"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("Next: fastkto chat out")
    log = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert {"loss", "eval_loss"} <= {name for line in log for name in line}


def test_each_number_says_what_it_rests_on(workplace, capsys):
    assert init() == 0
    lines = Path("config.yaml").read_text().splitlines()
    assert lines[0] == "# fastkto init thumbs.csv --model model"
    assert 10 <= len(lines) <= 16
    why = {line.partition(":")[0]: line.partition("  # ")[2] for line in lines}
    assert why["dataset_name"] == "96 rows of 48 prompts, 67% thumbs up"
    assert why["test_split_size"].startswith("10 rows of 5 prompts")
    assert why["desirable_weight"].startswith("64 up and 32 down")
    assert "the longest row has" in why["max_length"]
    assert why["num_train_epochs"] == "33 steps"
    assert written()["num_train_epochs"] == 3
    assert "96: 64 thumbs up, 32 thumbs down; 48 prompts" in capsys.readouterr().out


def test_no_prompt_is_on_both_sides(workplace):
    assert init() == 0
    found = written()
    rows = normalise(read_rows(found["dataset_name"]), RowOptions(chat=found["chat"]))
    kept, held_out = split_by_prompt(rows, found["test_split_size"], 42)
    sides = [{json.dumps(rows[i]["prompt"]) for i in part} for part in (kept, held_out)]
    assert len(held_out) == 10
    assert not sides[0] & sides[1]


def test_few_prompts_are_not_divided(workplace):
    write_thumbs(40, up=lambda i: i % 2 == 0, prompt=lambda i: f"question {i % 3}")
    assert init() == 0
    assert not {"test_split_size", "eval_strategy"} & written().keys()
    assert "desirable_weight" not in written()


def test_a_rare_class_gets_its_weight_and_a_place_in_every_batch(workplace):
    write_thumbs(96, up=lambda i: i % 8 == 0)
    assert init() == 0
    assert written()["desirable_weight"] == "auto"
    assert written()["train_sampling_strategy"] == "stratified"
    assert main(["train", "config.yaml", "--max_steps", "1", "--use_cpu", "--disable_tqdm", "true"]) == 0


def test_options_of_the_rows_are_handed_on(workplace):
    text = Path("thumbs.csv").read_text().replace("label", "vote").replace("true", "up").replace("false", "down")
    Path("my votes.csv").write_text(text)
    flags = ("--label_column", "vote", "--label_map", "up=true", "down=false", "--on-unrated", "drop")
    assert init(*flags, "--output", "other.yaml", file="my votes.csv") == 0
    found = written("other.yaml")
    assert found["dataset_name"] == "my votes.csv"
    assert found["label_map"] == ["up=true", "down=false"]
    assert (found["label_column"], found["on_unrated"]) == ("vote", "drop")
    assert Path("other.yaml").read_text().startswith("# fastkto init 'my votes.csv' --model model --label_column vote ")
    assert main(["train", "other.yaml", "--max_steps", "1", "--use_cpu", "--disable_tqdm", "true"]) == 0


@pytest.mark.parametrize("flags", [("--label_threshold", "4"), ("--label_band", "2", "4")])
def test_scores(workplace, flags):
    rows = [{"prompt": f"q {i}", "completion": f"a {i}", "label": 1 + i % 5} for i in range(40)]
    Path("stars.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert init(*flags, file="stars.jsonl") == 0
    given = [float(number) for number in flags[1:]]
    assert written()[flags[0].lstrip("-")] == (given if len(given) > 1 else given[0])
    assert main(["train", "config.yaml", "--max_steps", "1", "--use_cpu", "--disable_tqdm", "true"]) == 0


def test_text_that_went_through_a_template_stays_as_it_is(workplace):
    write_thumbs(40, up=lambda i: i % 2 == 0, prompt=lambda i: f"<|user|>question {i}<|end|>\n<|assistant|>")
    assert init() == 0
    assert "chat" not in written()


def test_a_model_without_a_template_trains_on_plain_text(workplace, tmp_path):
    tiny_llama().save_pretrained("plain")
    tiny_tokenizer(chat=False).save_pretrained("plain")
    assert init(model="plain") == 0
    assert "chat" not in written()
    assert init("--chat_template", "chatml", "--overwrite", model="plain") == 0
    assert (written()["chat"], written()["chat_template"]) == (True, "chatml")
    assert main(["train", "config.yaml", "--max_steps", "1", "--use_cpu", "--disable_tqdm", "true"]) == 0


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A model whose weights are most of what a step needs; the process itself counts for nothing."""
    monkeypatch.setattr("fastkto.tools.plan.process_bytes", lambda device: 0)
    tiny_llama(hidden=512, layers=3).save_pretrained("large")
    tiny_tokenizer().save_pretrained("large")
    return "large"


def test_an_adapter_where_all_weights_do_not_fit(workplace, large, capsys):
    assert init("--memory", "1GiB", model=large) == 0
    assert "use_peft" not in written()
    assert init("--memory", "120MiB", "--overwrite", model=large) == 0
    found = written()
    assert found["use_peft"] is True
    assert found["learning_rate"] == LEARNING_RATE["LoRA"]
    assert found["per_device_train_batch_size"] >= 2
    assert "# all weights need 141 MiB of the 120 MiB that --memory names" in Path("config.yaml").read_text()
    assert "plan    LoRA" in capsys.readouterr().out
    assert main(["train", "config.yaml", "--max_steps", "1", "--use_cpu", "--disable_tqdm", "true"]) == 0
    assert Path("out/adapter_config.json").is_file()


def refused(capsys, words, *flags, code=1, **more):
    before = {path: path.read_bytes() for path in Path.cwd().glob("*") if path.is_file()}
    assert init(*flags, **more) == code
    said = capsys.readouterr().err
    line = next(line for line in said.splitlines() if line.startswith("fastkto init: "))
    assert all(word in line for word in words), line
    assert "Traceback" not in said
    assert {path: path.read_bytes() for path in Path.cwd().glob("*") if path.is_file()} == before


def test_what_cannot_be_used_is_one_line(workplace, capsys, large):
    refused(capsys, ["'nowhere.csv'", "exists"], file="nowhere.csv")
    refused(capsys, ["model: got './nowhere'"], model="./nowhere")
    refused(
        capsys,
        ["20 MiB that --memory names", "at least 29 MiB, for the weights of the model alone"],
        "--memory",
        "20MiB",
        model=large,
    )
    refused(capsys, ["for LoRA on 2 rows of 64 tokens", "--memory"], "--memory", "50MiB", model=large)
    refused(capsys, ["'much' is not a size"], "--memory", "much", code=2)
    refused(capsys, ["'--label_map'"], "--label_mpa", "up=true", code=2)
    write_thumbs(LEAST_ROWS - 1, up=lambda i: i % 2 == 0)
    refused(capsys, [f"thumbs.csv with {LEAST_ROWS - 1} rows", f"at least {LEAST_ROWS}"])
    write_thumbs(40, up=lambda i: True)
    refused(capsys, ["40 rows, all desirable", "thumbs down"])
    write_thumbs(40, up=lambda i: i % 2 == 0, prompt=lambda i: "always this")
    refused(capsys, ["40 rows with one prompt"])
    Path("thumbs.csv").write_text("prompt,completion,label\n" + "a,b,good\n" * 20)
    refused(capsys, ["'good'", "--label_map"])


def test_a_file_that_is_there_stays(workplace, capsys):
    Path("config.yaml").write_text("mine: 1\n")
    refused(capsys, ["config.yaml", "--overwrite"])
    assert init("--overwrite") == 0
    assert written()["dataset_name"] == "thumbs.csv"
    Path("folder").mkdir()
    refused(capsys, ["'folder'", "a file"], "--output", "folder")
    refused(capsys, ["a folder that exists"], "--output", "no/config.yaml")


def test_a_write_that_fails_leaves_nothing(workplace, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    assert init() == 1
    assert not [path for path in Path.cwd().iterdir() if "config" in path.name]


def test_the_memory_of_a_container_counts(tmp_path):
    import torch

    (tmp_path / "memory.max").write_text(f"{2**20}\n")
    (tmp_path / "memory.current").write_text(f"{2**19}\n")
    assert memory_here(torch.device("cpu"), tmp_path).size == 2**19
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_here(torch.device("cpu"), tmp_path).size > 2**20
    assert in_words(2**30 + 1) == "1.1 GiB"
    assert str(Memory(3 * 2**29, "that are free here")) == "1.5 GiB that are free here"


@pytest.mark.parametrize("command", ["init", "chat"])
def test_help_waits_for_nothing_large(command):
    code = (
        "import sys\nfrom fastkto.cli import main\n"
        f"assert main(['{command}', '--help']) == 0\n"
        "large = {'torch', 'transformers', 'datasets', 'peft', 'numpy'} & {*sys.modules}\n"
        "assert not large, large\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: fastkto" in done.stdout
