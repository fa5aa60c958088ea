"""Rows from files as they are found in the wild, and an error for each that cannot be read."""

import gzip
import json

import pytest
from datasets import Dataset, IterableDataset

from fastkto.errors import InputError
from fastkto.rows import normalise, read_rows

ROWS = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "c", "completion": "d", "label": False}]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(path, rows):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(path)
    else:
        Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet"])
def test_local_files(tmp_path, name, streaming):
    rows = read_rows(write(tmp_path / name, ROWS), streaming=streaming)
    assert isinstance(rows, IterableDataset if streaming else Dataset)
    found = [row | {"label": str(row["label"]) == "True"} for row in rows]
    assert found == ROWS


def test_folder_and_splits(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", ROWS[:1])
    assert list(read_rows(tmp_path)) == ROWS
    assert list(read_rows(tmp_path, split="test")) == ROWS[:1]
    assert len(read_rows(tmp_path / "train.jsonl", split="train[:1]")) == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [("none.json", ""), ("none.jsonl", ""), ("none.csv", ""), ("list.json", "[]"), ("head.csv", "prompt,label\n")],
)
def test_empty_files(tmp_path, name, content, streaming):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"dataset: got .*{name}.*at least one row"):
        read_rows(tmp_path / name, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("words.json", b"hello {"),
        ("words.parquet", b"\0\1\2"),
        ("latin.jsonl", '{"prompt": "caf\xe9"}\n'.encode("latin-1")),
    ],
)
def test_unreadable_files(tmp_path, name, content, streaming):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"dataset: got .*{name}.*The reader says: "):
        read_rows(tmp_path / name, streaming=streaming)


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("none.jsonl", "./none", str(tmp_path / "none")):
        with pytest.raises(InputError, match="a file or folder that exists"):
            read_rows(source)
    with pytest.raises(InputError, match=r"someone/something.*The reader says"):
        read_rows("someone/something")
    (tmp_path / "rows.txt").write_text("a")
    with pytest.raises(InputError, match=r"a file in \.json, \.jsonl, \.csv, \.parquet"):
        read_rows("rows.txt")
    with pytest.raises(InputError, match="a folder with files in"):
        read_rows(str(tmp_path))
    write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(InputError, match="as split 'test'"):
        read_rows("rows.jsonl", split="test")


def test_mixed_labels_of_a_file_are_read_one_by_one(tmp_path):
    rows = [ROWS[0] | {"label": cell} for cell in (True, "false", 1)]
    normalised = normalise(read_rows(write(tmp_path / "rows.json", rows)))
    assert normalised["label"][:] == [True, False, True]
    bad = [*rows, ROWS[0] | {"label": "perhaps"}]
    with pytest.raises(InputError, match="row 3, column 'label'"):
        normalise(read_rows(write(tmp_path / "bad.json", bad)))


def test_missing_cells_of_a_csv(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,completion,label\na,b,True\n,c,False\n")
    with pytest.raises(InputError, match=r"row 1, column 'prompt'.*The cell is empty"):
        normalise(read_rows(tmp_path / "rows.csv"))


def test_tool_calls_and_odd_keys_of_messages_survive(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "label": True},
        {"messages": [{"role": "user", "content": "a"}, call], "label": False},
    ]
    got = normalise(read_rows(write(tmp_path / "rows.jsonl", rows)))
    assert got[1]["completion"][0]["tool_calls"][0]["function"]["arguments"] == {"x": 1}


def test_a_datasets_without_json_is_named(tmp_path, monkeypatch):
    monkeypatch.delattr("datasets.Json")
    nested = [{"messages": [{"role": "user", "content": "a"}], "label": True}]
    with pytest.raises(InputError, match=r"datasets: got .*version 4\.7 or newer.*pip install"):
        read_rows(write(tmp_path / "rows.jsonl", nested))
