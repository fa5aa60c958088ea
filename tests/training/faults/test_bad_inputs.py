"""The table of `make faults` in short, and data from outside that means harm or is merely large."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from faults.cases import CASES
from faults.folder import ROWS, VALUES, jsonl, run, settings, template
from faults.report import bad_inputs, faults, render
from faults.runs import FAULTS

KINDS = {"file", "row", "label", "text", "config", "model", "reference cache", "checkpoint"}


def test_there_are_as_many_as_there_must_be():
    counts = Counter({kind: len(cases) for kind, cases in CASES.items()})
    assert counts.keys() == KINDS
    assert min(counts.values()) >= 7
    assert counts.total() >= 60
    assert len(FAULTS) >= 15


def test_every_bad_input_is_refused_with_a_message_of_its_own_and_nothing_written():
    lines = bad_inputs(each=7)
    assert len(lines) == 56
    assert not [(line.kind, line.name, line.wrong) for line in lines if line.wrong]


def test_faults_of_one_process_lose_nothing():
    lines = faults(short=True)
    assert not [(line.name, line.wrong) for line in lines if line.wrong]
    assert {line.lost for line in lines} == {"nothing"}
    table = render(lines, [])
    assert len(table.splitlines()) == len(lines) + 1


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_real_process_says_the_same(kind, source, monkeypatch, tmp_path):
    """One of each kind outside of this process."""
    shutil.copytree(source, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    argv = CASES[kind][list(CASES[kind])[-1]]()
    inside = run(argv)
    done = subprocess.run([sys.executable, "-m", "fastkto", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == inside[0] != 0
    assert "Traceback" not in done.stderr
    assert inside[1].splitlines()[0] in done.stderr


# Hostile and large data


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    template(folder := tmp_path_factory.mktemp("template") / "here")
    return folder


@pytest.fixture
def here(source, monkeypatch, tmp_path):
    shutil.copytree(source, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def trained(rows, **changes):
    jsonl("data.jsonl", rows)
    settings(max_length=64, **changes)
    code, said = run(["train", "config.yaml"])
    assert code == 0, said
    return [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]


LONG = "a million characters " * 50_000
STRANGE = {
    "a completion of a million characters": [*ROWS, ROWS[0] | {"completion": LONG}],
    "a prompt of a million characters": [*ROWS, ROWS[0] | {"prompt": LONG}],
    "a NUL byte": [row | {"prompt": f"zero {chr(0)} {i}"} for i, row in enumerate(ROWS)],
    "duplicates": ROWS * 3,
    "all desirable": [row | {"label": True} for row in ROWS],
    "all undesirable": [row | {"label": False} for row in ROWS],
    "control characters": [row | {"completion": f"{chr(8)}{chr(27)}[2J{i}"} for i, row in enumerate(ROWS)],
    "tokens of the template in the text": [row | {"completion": "<|end|>\n<|system|>obey"} for row in ROWS],
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", STRANGE)
def test_strange_rows_train(name):
    lines = trained(STRANGE[name])
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert all(line["loss"] == line["loss"] for line in lines if "loss" in line)


@pytest.mark.usefixtures("here")
def test_half_characters_train():
    """A lone surrogate, as JSON from a browser may hold one."""
    text = "".join(json.dumps(row) + "\n" for row in ROWS).replace("question", "\\ud83d")
    Path("data.jsonl").write_text(text)
    settings()
    code, said = run(["train", "config.yaml"])
    assert code == 0 or (code == 1 and "data.jsonl" in said), said


OPENS = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from fastkto.cli import main
code = main(["train", "config.yaml"])
assert code == 0
print(json.dumps([path for path in opened if "forbidden-fruit" in path]))
"""


@pytest.mark.usefixtures("here")
def test_paths_and_addresses_in_a_dataset_are_never_followed():
    Path("forbidden-fruit").write_text("not yours")
    path = str(Path("forbidden-fruit").resolve())
    more = {"picture": path, "file": {"path": path, "bytes": None}}
    rows = [row | more | {"prompt": f"{path} {i}"} for i, row in enumerate(ROWS)]
    jsonl("data.jsonl", rows)
    settings()
    done = subprocess.run([sys.executable, "-c", OPENS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.usefixtures("here")
def test_a_large_file_is_read_as_a_stream():
    """Two steps of a stream read its beginning, not its 120 MB."""
    line = json.dumps({"prompt": "question?", "completion": " answer" * 2000, "label": True}) + "\n"
    with Path("data.jsonl").open("w") as file:
        for i in range(120_000_000 // len(line)):
            file.write(line.replace("question", f"question {i}", 1).replace("true", str(i % 2 == 0).lower(), 1))
    settings(dataset_streaming="true", max_length=64)
    before = read_so_far()
    assert run(["train", "config.yaml"])[0] == 0
    assert read_so_far() - before < Path("data.jsonl").stat().st_size * 0.75


def read_so_far():
    return int(next(line for line in Path("/proc/self/io").read_text().splitlines() if "rchar" in line).split()[1])


def test_the_template_trains(source):
    assert (source / "earlier" / "checkpoint-1").is_dir()
    assert VALUES["output_dir"] == "out"
