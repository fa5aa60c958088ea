"""The same rows through every kind of file, streamed or not, alone or in a mixture: the same ids, which are stock's."""

import csv
import json
import pickle
import tempfile
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stock import answer, call, chat_ids, right, template, text_ids, trained, user
from tiny import tiny_tokenizer

from fastkto.cli.options.arguments import DataArguments
from fastkto.cli.options.mixture import read_splits
from fastkto.rows import RowOptions, read_rows

PLAIN, CHAT = tiny_tokenizer(chat=False), tiny_tokenizer()
CHAT.chat_template = template("qwen3")

LIKE_OTHER_THINGS = ["None", "NA", "null", "7", "00007", "7.50", "1e3", "true", "2010-01-03", "[]", "{}", "a;b", " x "]
text = st.sampled_from(LIKE_OTHER_THINGS) | st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | text
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
text_rows = st.lists(st.tuples(text, text, st.booleans()), min_size=2, max_size=4)
chat_rows = st.lists(
    st.tuples(text, text | st.dictionaries(text, values, max_size=3), st.booleans()), min_size=2, max_size=4
)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(folder, rows, flat):
    """The files that can carry these rows; `flat` are the same with JSON for what is nested."""
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "data.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False))
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, flat[0])
        writer.writeheader()
        writer.writerows(flat)
    Dataset.from_list(flat).to_parquet(folder / "data.parquet")
    Dataset.from_list(flat).save_to_disk(folder / "saved")
    return [folder / name for name in ("data.jsonl", "data.json", "data.csv", "data.parquet", "saved")]


def check(rows, flat, tokenizer, expected):
    with tempfile.TemporaryDirectory() as name:
        paths = write(Path(name), rows, flat)
        for path in paths:
            for streaming in (False, True):
                assert trained(read_rows(path, streaming=streaming), tokenizer) == expected, (path.name, streaming)
        for streaming in (False, True):
            data = DataArguments(datasets=[{"path": str(path)} for path in paths], streaming=streaming)
            mixture, _ = read_splits(data, RowOptions(), evaluate=False)
            mixture = pickle.loads(pickle.dumps(mixture)) if streaming else mixture  # as a data loader's process has it
            assert trained(mixture, tokenizer) == sorted(expected * len(paths))


SETTINGS = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@SETTINGS
@given(text_rows)
def test_text(cells):
    rows = [{"prompt": prompt, "completion": completion, "label": label} for prompt, completion, label in cells]
    expected = right((text_ids(PLAIN, row["prompt"], row["completion"]), row["label"]) for row in rows)
    check(rows, rows, PLAIN, expected)


@SETTINGS
@given(chat_rows)
def test_chats_with_calls(cells):
    rows = [
        {
            "messages": [user(prompt), answer(said) if isinstance(said, str) else answer("", tool_calls=call(said))],
            "label": label,
        }
        for prompt, said, label in cells
    ]
    flat = [row | {"messages": json.dumps(row["messages"])} for row in rows]
    expected = right((chat_ids(CHAT, r["messages"][:1], r["messages"][1:]), r["label"]) for r in rows)
    check(rows, flat, CHAT, expected)
