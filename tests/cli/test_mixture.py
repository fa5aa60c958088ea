"""`datasets:` of a YAML file: each part is read by its own reader and columns, then all are joined."""

import csv
import json
from pathlib import Path

import pytest

from fastkto.cli.options.arguments import DataArguments
from fastkto.cli.options.mixture import read_splits
from fastkto.errors import InputError
from fastkto.rows import RowOptions
from fastkto.rows.shapes.looking import as_written, reports_of


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(sources):
    for name, rows in sources.items():
        if name.endswith(".csv"):
            with Path(name).open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        else:
            Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_mixture_keeps_the_columns_asked_for(workplace):
    Path("data").mkdir()
    Path("data/train.jsonl").write_text(json.dumps({"a": "q", "completion": "x", "label": 1, "tools": "[]"}) + "\n")
    data = DataArguments(datasets=[{"path": "data", "columns": ["a", "completion", "label"]}])
    rows, _ = read_splits(data, RowOptions(prompt_column="a"), evaluate=False)
    assert rows.column_names == ["prompt", "completion", "label", "row_id", "conversation"]


def test_A13_each_part_of_a_mixture_is_read_by_its_own_columns(workplace):
    call = [{"type": "function", "function": {"name": "f", "arguments": {"x": None}}}]
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": call}]
    sources = {
        "plain.jsonl": [{"messages": [chat[0], {"role": "assistant", "content": "a"}], "stars": 1}],
        "calls.json": [{"messages": chat, "stars": 5, "tools": [{"name": "f", "zone": None}]}],
        "pairs.jsonl": [{"question": "p", "chosen": "c", "rejected": "d"}],
        "scores.csv": [{"question": "s", "completion": "007", "stars": "4"}],
    }
    write(sources)
    options = RowOptions(prompt_column="question", label_column="stars", label_threshold=4)
    for streaming in (False, True):
        data = DataArguments(datasets=[{"path": name} for name in sources], streaming=streaming)
        rows = read_splits(data, options, evaluate=False)[0]
        rows = [*map(as_written(rows), rows)] if streaming else list(rows)
        found = {str((row["prompt"], row["completion"], row["label"])) for row in rows}
        assert found == {
            str(expected)
            for expected in [
                ([chat[0]], [{"role": "assistant", "content": "a"}], False),
                ([chat[0]], [chat[1]], True),
                ("p", "c", True),
                ("p", "d", False),
                ("s", "007", True),
            ]
        }
        assert len({row["conversation"] for row in rows}) == 4
    assert [row.get("tools") for row in rows if row["completion"] == [chat[1]]] == [[{"name": "f", "zone": None}]]
    with pytest.raises(InputError, match=r"label_column: got 'thumb', expected a column of one of the datasets"):
        read_splits(data, RowOptions(label_column="thumb"), evaluate=False)


def comparison(score, **more):
    """A pair as SHP has it: two comments under a post, with their votes."""
    votes = {"score_A": 9, "score_B": score}
    return {"history": f"post {score}", "human_ref_A": "yes", "human_ref_B": "no", "domain": "askbaking"} | votes | more


def run(i, thumb):
    """A run as LangSmith has it."""
    stats = {"feedback_stats": {"thumb": thumb}}
    return {"inputs": {"input": f"q{i}"}, "outputs": {"output": f"a{i}"}, "name": "web", **stats}


def test_a_part_may_have_its_own_reader(workplace):
    runs = [run(0, None), run(1, {"n": 1, "avg": 5.0}), run(2, {"n": 1, "avg": 2.0})]
    rated = {"instruction": "Say it.", "custom_system_prompt": None, "source": "web", "models": ["m"]}
    rated["completions"] = [{"response": f"r{i}", "overall_score": i, "fine-grained_score": i} for i in (1, 3, 5)]
    sources = {
        "posts.jsonl": [comparison(8), comparison(2), comparison(3)],
        "scores.csv": [{"question": "s", "completion": "007", "stars": "4"}],
        "runs.jsonl": runs,
        "rated.jsonl": [rated],
    }
    write(sources)
    readers = {"posts.jsonl": "shp", "runs.jsonl": "runs.yaml", "rated.jsonl": "auto"}
    Path("runs.yaml").write_text("prompt: inputs.input\ncompletion: outputs.output\nlabel: feedback_stats.thumb.avg")
    parts = [{"path": name} | ({"reader": readers[name]} if name in readers else {}) for name in sources]
    options = RowOptions(prompt_column="question", label_column="stars", label_band=[2, 4])
    rows = read_splits(DataArguments(datasets=parts), options, evaluate=False)[0]

    def chat(prompt, completion):
        return [{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion}]

    found = [(row["prompt"], row["completion"], row["label"]) for row in rows]
    expected = [
        *((*chat(f"post {score}", answer), answer == "yes") for score in (2, 3) for answer in ("yes", "no")),
        ("s", "007", True),
        ("q1", "a1", True),
        ("q2", "a2", False),
        ("Say it.", "r1", False),
        ("Say it.", "r5", True),
    ]
    assert sorted(map(str, found)) == sorted(map(str, expected))
    assert len({row["conversation"] for row in rows}) == 7, "the two sides of a pair share one"
    reports = reports_of(rows)
    assert [report.reader for report in reports] == ["shp", None, "runs", "ultrafeedback"]
    assert [report.source for report in reports] == [3, 1, 3, 1]
    assert reports[2].left_out == ("1 not rated (record 0)",)


def test_a_reader_for_all_parts_leaves_to_their_columns_what_it_does_not_know(workplace):
    write({"posts.jsonl": [comparison(2)], "own.jsonl": [{"prompt": "p", "completion": "c", "label": True}]})
    data = DataArguments(datasets=[{"path": "posts.jsonl"}, {"path": "own.jsonl"}])
    rows = read_splits(data, RowOptions(reader="auto"), evaluate=False)[0]
    assert [row["prompt"] for row in rows if row["label"]] == [[{"role": "user", "content": "post 2"}], "p"]
    with pytest.raises(InputError, match="a dataset that is not streamed"):
        read_splits(DataArguments(datasets=data.datasets, streaming=True), RowOptions(reader="auto"), evaluate=False)
