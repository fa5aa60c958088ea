"""Public reports, A10 to A13 and A17 to A28: what stands in a file is what is read. Right values: json's and csv's."""

import bz2
import csv
import gzip
import json
import lzma
import os
import time

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from stock import WORDS, answer, call, chat_ids, right, template, text_ids, trained, user
from tiny import tiny_tokenizer

from fastkto.errors import InputError
from fastkto.rows import RowOptions, normalise, read_rows

PLAIN, CHAT = tiny_tokenizer(chat=False), tiny_tokenizer()
CHAT.chat_template = template("qwen3")


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def rows_of(*answers):
    return [{"prompt": f"q{i}?", "completion": a, "label": i % 2 == 0} for i, a in enumerate(answers)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path, rows, **dialect):
    with path.open("w", newline="", encoding=dialect.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, rows[0], **dialect)
        writer.writeheader()
        writer.writerows(rows)
    return path


def expected(rows):
    return right((text_ids(PLAIN, r["prompt"], r["completion"]), r["label"]) for r in rows)


TEXTS = [
    "None",
    "NA",
    "null",
    "nan",
    "00007",
    "7.50",
    "True",
    "1e3",
    "2010-01-03",
    " a ",
    'say ""x""',
    "l1\r\nl2\n",
    "=1+1",
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", [table, jsonl])
def test_A10_A11_text_stays_text(tmp_path, write, streaming):
    rows = rows_of(*TEXTS)
    path = write(tmp_path / ("data.csv" if write is table else "data.jsonl"), rows)
    assert trained(read_rows(path, streaming=streaming), PLAIN) == expected(rows)
    for kind in TEXTS:  # a column of one kind of text only
        rows = rows_of(*[kind] * 4)
        path = write(tmp_path / ("data.csv" if write is table else "data.jsonl"), rows)
        assert trained(read_rows(path, streaming=streaming), PLAIN) == expected(rows)


def test_A10_text_that_looks_like_a_number_after_row_10000(tmp_path):
    rows = rows_of(*[str(i) for i in range(10_500)], "00007")
    assert read_rows(table(tmp_path / "data.csv", rows))[-1]["completion"] == "00007"


@pytest.mark.parametrize("streaming", [False, True])
def test_A12_a_key_that_comes_late(tmp_path, streaming):
    rows = [{"messages": [user(f"q{i}"), answer("a " * 4000)], "label": i % 2 == 0} for i in range(1400)]
    rows += [
        {"messages": [user("t"), answer("", tool_calls=call({"x": None}))], "label": True, "late": {"a": [1, "b"]}}
    ]
    read = read_rows(jsonl(tmp_path / "data.jsonl", rows), streaming=streaming)
    *_, last = normalise(read)
    assert last["completion"] == rows[-1]["messages"][1:]
    assert streaming or read[-1] == rows[-1]


@pytest.mark.parametrize("streaming", [False, True])
def test_A5_A6_tools_and_nulls_reach_the_template_as_written(tmp_path, streaming):
    tools = [
        [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"city": {"default": None}}}}}],
        [{"type": "function", "function": {"name": "g", "parameters": {"properties": {"zone": {"enum": [1, "a"]}}}}}],
    ]
    rows = [
        {"messages": [user(w), answer("", tool_calls=call({"x": None, "y": 0.1234567890123456789, "z": 10**25}))]}
        | {"tools": tools[i % 2], "label": i % 2}
        for i, w in enumerate(WORDS)
    ]
    ids = right((chat_ids(CHAT, r["messages"][:1], r["messages"][1:], tools=r["tools"]), r["label"]) for r in rows)
    assert trained(read_rows(jsonl(tmp_path / "data.jsonl", rows), streaming=streaming), CHAT) == ids
    (tmp_path / "data.json").write_text(json.dumps(rows, indent=1))
    assert trained(read_rows(tmp_path / "data.json", streaming=streaming), CHAT) == ids


@pytest.mark.parametrize("streaming", [False, True])
def test_A6_arrow_pads_and_no_padding_reaches_the_template(streaming):
    rows = [
        {"messages": [user(w), answer(w)], "tools": [{"name": "f", "arguments": {("city", "zone")[i % 2]: "x"}}]}
        | {"label": i % 2}
        for i, w in enumerate(WORDS)
    ]
    ids = right((chat_ids(CHAT, r["messages"][:1], r["messages"][1:], tools=r["tools"]), r["label"]) for r in rows)
    data = Dataset.from_list(rows)
    assert "zone" in data[0]["tools"][0]["arguments"]
    assert trained(data.to_iterable_dataset() if streaming else data, CHAT) == ids


def test_A17_folders_of_save_to_disk(tmp_path):
    rows = Dataset.from_list(rows_of(*TEXTS[:4]))
    rows.save_to_disk(tmp_path / "one")
    DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path / "two")
    assert list(read_rows(tmp_path / "one")) == list(read_rows(tmp_path / "two", streaming=True)) == list(rows)
    assert len(read_rows(tmp_path / "two", split="test")) == 1
    before = sorted(tmp_path.rglob("*"))
    assert trained(read_rows(tmp_path / "one"), PLAIN) == expected(rows)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match="as split 'dev'.*The folder has: train, test"):
        read_rows(tmp_path / "two", split="dev")


@pytest.mark.parametrize("name", ["data[1]", "star*", "what?", "{a,b}"])
@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ""])
def test_A19_a_path_is_a_path(tmp_path, name, kind):
    for stem, word in ((name, "mine"), *((other, "other") for other in ("data1", "stars", "whatx", "a", "b"))):
        path = tmp_path / (stem + kind)
        data = Dataset.from_list([{"prompt": word, "completion": "c", "label": True}])
        if kind == "":
            path.mkdir()
            data.to_json(path / "data.jsonl")
        else:
            (data.to_parquet if kind == ".parquet" else data.to_json)(path)
    for streaming in (False, True):
        assert [row["prompt"] for row in read_rows(tmp_path / (name + kind), streaming=streaming)] == ["mine"]


def test_A19_a_pattern_that_names_no_file_is_a_pattern(tmp_path, caplog):
    for i in range(2):
        jsonl(tmp_path / f"part{i}.jsonl", rows_of(f"{i}"))
    assert [row["completion"] for row in read_rows(tmp_path / "part*.jsonl")] == ["0", "1"]
    assert "part1.jsonl" in caplog.text


def test_A20_a_folder_is_read_by_ending_and_says_what_it_leaves_out(tmp_path, caplog):
    folder = tmp_path / "extra"
    folder.mkdir()
    for name in ("train.jsonl", "extra.jsonl", "extra.jsonl.bak", "eval.jsonl", "notes.md"):
        jsonl(folder / name, rows_of(name))
    assert [row["completion"] for row in read_rows(folder)] == ["extra.jsonl", "train.jsonl"]
    assert "not read: eval.jsonl, extra.jsonl.bak, notes.md" in caplog.text
    assert [row["completion"] for row in read_rows(folder, split="test")] == ["eval.jsonl"]
    table(folder / "b.csv", rows_of("b"))
    with pytest.raises(InputError, match="files of one kind, not"):
        read_rows(folder)
    (folder / "b.csv").unlink()
    (folder / "extra.jsonl.gz").write_bytes(gzip.compress((folder / "extra.jsonl").read_bytes()))
    with pytest.raises(InputError, match="not both"):
        read_rows(folder)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_A21_separators_and_encodings_are_found_and_said(tmp_path, caplog, delimiter, encoding):
    rows = rows_of("caf\xe9, na\xefve", "a,b,c", "d;e\tf|g", "\xe4\xf6")
    path = table(tmp_path / "data.csv", rows, delimiter=delimiter, encoding=encoding)
    assert trained(read_rows(path), PLAIN) == expected(rows)
    assert f"cells are separated by {delimiter!r}" in caplog.text
    assert ("read as cp1252" in caplog.text) == (encoding == "cp1252")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,completion,label\na,b,1,x\nc,d,0,y\n", "3 cells in line 2.*there are 4"),
        ("a.csv", "prompt,completion,label\na,b,1\nc,d\n", "3 cells in line 3.*there are 2"),
        ("a.csv", 'prompt,completion,label\n"a,b,1\n', "line 2.*unexpected end of data"),
        ("a.csv", "prompt,prompt,label\na,b,1\n", "each name once.*'prompt'"),
        ("a.xlsx", "PK", "Export it as CSV"),
        ("a.jsonl", '{"a": 1}\n\n{"a": \n{"a": 2}\n', "JSON in line 3"),
        ("a.jsonl", '{"a": 1}\n[2]\n', "a JSON object in line 2"),
        ("a.json", '[{"a": 1},\n{"a": }]', "JSON in line 2"),
        ("a.json", '[{"a": 1}, 2]', "a JSON object in element 1"),
    ],
)
def test_A21_A28_damage_is_one_line_that_names_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    for streaming in (False, True):
        with pytest.raises(InputError, match=message) as error:
            list(read_rows(tmp_path / name, streaming=streaming))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ending", "compress"),
    [(".GZ", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", None)],
)
def test_A21_compressed_files_by_any_ending(tmp_path, ending, compress):
    path = jsonl(tmp_path / "data.jsonl", rows_of(*TEXTS))
    squeezed = tmp_path / f"other.jsonl{ending}"
    if compress is None:
        with pa.CompressedOutputStream(str(squeezed), "zstd") as file:
            file.write(path.read_bytes())
    else:
        squeezed.write_bytes(compress(path.read_bytes()))
    assert list(read_rows(squeezed)) == list(read_rows(path))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["data.jsonl", "data.csv"])
def test_A27_content_decides_and_not_the_date(tmp_path, name, streaming):
    write = table if name.endswith("csv") else jsonl
    for turn in (True, False):
        rows = [row | {"label": row["label"] == turn} for row in rows_of("yes", "yea")]
        path = write(tmp_path / name, rows)
        os.utime(path, (10**9, 10**9))
        assert trained(read_rows(path, streaming=streaming), PLAIN) == expected(rows)


@pytest.mark.parametrize("spell", [json.dumps, repr])
def test_A28_messages_in_a_text_cell(tmp_path, spell):
    rows = [{"messages": [user(w), answer(f"it's {w}")], "label": i % 2 == 0} for i, w in enumerate(WORDS)]
    ids = right((chat_ids(CHAT, r["messages"][:1], r["messages"][1:]), r["label"]) for r in rows)
    cells = [row | {"messages": spell(row["messages"])} for row in rows]
    assert trained(read_rows(table(tmp_path / "data.csv", cells)), CHAT) == ids
    halves = [{"prompt": spell(r["messages"][:1]), "completion": spell(r["messages"][1:])} for r in rows]
    halves = [half | {"label": row["label"]} for half, row in zip(halves, rows, strict=True)]
    assert trained(read_rows(table(tmp_path / "data.csv", halves)), CHAT) == ids
    halves[2]["prompt"] = halves[2]["prompt"][:-1]
    with pytest.raises(InputError, match="row 2, column 'prompt'.*messages as JSON"):
        trained(read_rows(table(tmp_path / "data.csv", halves)), CHAT)


def test_A25_a_cell_of_30_megabytes_takes_seconds(tmp_path):
    long = "some words and more. " * 1_500_000
    rows = [*rows_of("short", long, "other"), {"prompt": long, "completion": "c", "label": True}]
    rows += [{"prompt": "caf\xe9 ", "completion": long, "label": False}]
    start = time.process_time()
    found = trained(read_rows(jsonl(tmp_path / "data.jsonl", rows)), PLAIN, max_length=64)
    assert time.process_time() - start < 20
    cut = [row | {"completion": row["completion"][:500]} for row in rows if len(row["prompt"]) < 99]
    assert [(p, c[:64], x) for p, c, x in found] == [(p, c[:64], x) for p, c, x in expected(cut)]
    with pytest.raises(InputError, match="row 1.*got '314572.. characters', expected text with a break"):
        trained(Dataset.from_list(rows_of("a", "a" * (30 << 20), "b")), PLAIN, max_length=64)


def test_records_go_through_a_function_before_their_columns_are_looked_at(tmp_path):
    path = jsonl(
        tmp_path / "export.jsonl", [{"data": {"q": w, "a": [w, 1], "thumb": i % 2}} for i, w in enumerate(WORDS)]
    )

    def unpack(records):
        for record in records:
            data = record["data"]
            yield {"prompt": data["q"], "completion": data["a"][0], "label": data["thumb"]}

    expected_rows = right((text_ids(PLAIN, w, w), i % 2) for i, w in enumerate(WORDS))
    for streaming in (False, True):
        assert trained(read_rows(path, convert=unpack, streaming=streaming), PLAIN) == expected_rows
    assert len(read_rows(path)) == 4
    assert (
        len(
            normalise(
                read_rows(path),
                RowOptions(prompt_column="data.q", completion_column="data.q", label_column="data.thumb"),
            )
        )
        == 4
    )
