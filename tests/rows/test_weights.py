"""A weight a row: read from the column that is named, and from no other; what is no weight is at fault."""

import json

import pytest
from datasets import Dataset, IterableDataset
from feedback import rows_of
from tiny import tiny_tokenizer

from fastkto.batch import PackingCollator, PaddingCollator
from fastkto.batch.targets_and_kl import weight_of
from fastkto.cli.options.arguments import DataArguments
from fastkto.cli.options.mixture import read_splits
from fastkto.errors import InputError
from fastkto.rows import RowOptions, normalise, read_rows
from fastkto.rows.shapes.looking import reports_of
from fastkto.rows.tokens import COLUMNS, tokenize, tokenize_with_report
from fastkto.tools.preview.gathering import preview, render
from fastkto.tools.preview.page import page

TURNS = [{"role": role, "content": role} for role in ("user", "assistant") * 2]


def text(i, **more):
    return {"prompt": f"q{i}", "completion": f"a{i}", "label": i % 2 == 0, **more}


def weights(records, **options):
    return [row["weight"] for row in rows_of(records, **options)]


def test_numbers_and_numbers_as_text_by_name_and_by_path():
    records = [text(i, votes=votes) for i, votes in enumerate([3, 0])]
    assert weights(records, weight_column="votes") == [3.0, 0.0]
    assert weights([text(0, votes=" 2.5 "), text(1, votes="1e-1")], weight_column="votes") == [2.5, 0.1]
    assert weights([text(0, meta={"votes": [7, 8]})], weight_column="meta.votes.-1") == [8.0]


def test_both_sides_of_a_pair_and_every_turn_have_the_rows_weight():
    pairs = [{"prompt": f"q{i}", "chosen": "c", "rejected": "r", "votes": i} for i in range(3)]
    rows = rows_of(pairs, weight_column="votes")
    assert all(row["weight"] == row["row_id"] for row in rows)
    assert len(rows) == 6
    turns = [TURNS[0], TURNS[1] | {"weight": 9.0}, *TURNS[2:]]
    chats = [{"messages": turns, "label": True, "votes": 0.5}]
    assert weights(chats, weight_column="votes", every_assistant_turn=True) == [0.5, 0.5]


def test_a_column_that_is_called_weight_counts_only_where_it_is_named(caplog):
    records = [text(0, weight=5), text(1, weight=2)]
    rows = normalise(Dataset.from_list(records))
    assert "weight" not in rows.column_names
    assert "columns that are not used: weight" in caplog.text
    assert tuple(tokenize(rows, tiny_tokenizer(chat=False), max_length=None).column_names) == COLUMNS
    named = normalise(Dataset.from_list([row | {"votes": 1} for row in records]), RowOptions(weight_column="votes"))
    assert reports_of(named)[0].columns.endswith("label <- label, weight <- votes; not used: weight")
    assert named["weight"][:] == [1.0, 1.0]
    with pytest.raises(InputError, match=r"a column 'stars'\. Correct --weight_column"):
        rows_of(records, weight_column="stars")


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (None, "no weight"),
        ("  ", "no weight"),
        (float("nan"), "no weight"),
        (-0.5, "weight below 0"),
        ("-1", "weight below 0"),
        ("heavy", "weight not a finite number"),
        ("nan", "weight not a finite number"),
        (float("inf"), "weight not a finite number"),
        (1e39, "weight not a finite number"),
        (True, "weight not a finite number"),
        ([1.0], "weight not a finite number"),
    ],
)
def test_what_is_no_weight_is_an_error_that_counts_every_row(cell, kind, tmp_path):
    records = [text(i, votes=votes) for i, votes in enumerate([1, cell, cell, 2.5, cell, cell])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    expected = rf"^train row 1, column 'votes': got .* All that is wrong: {kind}: 4 rows \(1, 2, 4, \.\.\.\)\."
    with pytest.raises(InputError, match=expected):
        normalise(read_rows(tmp_path / "rows.jsonl"), RowOptions(weight_column="votes"))
    stream = normalise(read_rows(tmp_path / "rows.jsonl", streaming=True), RowOptions(weight_column="votes"))
    with pytest.raises(InputError, match="^train row 1, column 'votes': got "):
        list(stream)


def test_all_kinds_of_fault_in_one_pass_and_a_row_that_is_left_out_needs_no_weight():
    records = [text(0, votes=1.0), text(1, votes=-1.0), text(2, votes=None), text(3, votes=None) | {"label": None}]
    options = RowOptions(weight_column="votes", on_unrated="drop")
    with pytest.raises(
        InputError, match=r"row 1.*weight below 0: 1 row \(1\); no weight: 1 row \(2\); no label: 1 row"
    ):
        normalise(Dataset.from_list(records), options)
    assert [row["weight"] for row in normalise(Dataset.from_list([records[0], records[3]]), options)] == [1.0]


def test_a_stream_and_tokens_carry_it_and_another_column_gives_other_tokens():
    records = [text(i, votes=i / 2, stars=4 - i) for i in range(4)]
    tokenizer = tiny_tokenizer(chat=False)
    found = {}
    for name in ("votes", "stars"):
        rows = normalise(Dataset.from_list(records), RowOptions(weight_column=name))
        tokens, report = tokenize_with_report(rows, tokenizer, max_length=None)
        assert tokens.column_names == [*COLUMNS, "weight"]
        assert tokenize(tokens, tokenizer, max_length=None)[:] == tokens[:]
        stream = normalise(IterableDataset.from_generator(lambda: iter(records)), RowOptions(weight_column=name))
        assert [row["weight"] for row in tokenize(stream, tokenizer, max_length=None)] == tokens["weight"][:]
        found[name] = tokens["weight"][:], report.weights
    assert found["votes"] == ([0.0, 0.5, 1.0, 1.5], "0 to 1.5, mean 0.75; 1 row with weight 0")
    assert found["stars"] == ([4.0, 3.0, 2.0, 1.0], "1 to 4, mean 2.5; 0 rows with weight 0")


def test_a_batch_has_the_weights_of_its_rows():
    ids = [{"prompt_ids": [i], "completion_ids": [9, 8], "label": True} for i in range(3)]
    for collate in (PackingCollator(None), PaddingCollator(0, None)):
        assert "weights" not in collate(ids)
        assert weight_of(collate(ids)) == 3
        batch = collate([row | {"weight": weight} for row, weight in zip(ids, (0.5, 0.0, 2.0), strict=True)])
        assert batch["weights"] == [0.5, 0.0, 2.0]
        assert weight_of(batch) == 2.5


@pytest.mark.parametrize("streaming", [False, True])
def test_parts_of_a_mixture_without_weights_get_1(streaming, tmp_path):
    parts = {"a.jsonl": [text(0, votes=0.5), text(1, votes=4)], "b.jsonl": [text(2), text(3, weight=7)]}
    for name, records in parts.items():
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    data = DataArguments(datasets=[{"path": str(tmp_path / name)} for name in parts], streaming=streaming)
    rows, _ = read_splits(data, RowOptions(weight_column="votes"), evaluate=False)
    assert [row["weight"] for row in rows] == [0.5, 4.0, 1.0, 1.0]
    plain, _ = read_splits(data, RowOptions(), evaluate=False)
    assert not any("weight" in row for row in plain)
    with pytest.raises(InputError, match=r"weight_column: got 'stars', expected a column of one of the datasets"):
        read_splits(data, RowOptions(weight_column="stars"), evaluate=False)


def trace(thumb, **more):
    return {"input": "question", "output": "answer", "sessionId": "s", "thumb": thumb} | more


def test_a_reader_takes_it_from_the_record():
    records = [trace(None, meta={}), trace(["1"], meta={"users": 3}), trace(["0"], meta={"users": 0.5})]
    options = {"reader": "langfuse", "label_column": "thumb", "weight_column": "meta.users"}
    assert weights(records, **options) == [3.0, 0.5]
    with pytest.raises(InputError, match="^train record 3, column 'weight': got None, expected a weight"):
        rows_of([*records, trace(["1"], meta={"users": None})], **options)
    with pytest.raises(InputError, match=r"^weight_column: got 'meta.votes', expected a path into the records of lang"):
        rows_of(records, **options | {"weight_column": "meta.votes"})


def test_the_preview_and_the_page_show_them_in_a_line():
    records = [text(i, votes=votes) for i, votes in enumerate([0.2, 3.0, 0.0, 1.2] * 2)]
    own = {"max_length": 64, "batch_size": 4}
    for options, shown in ((None, False), (RowOptions(weight_column="votes"), True)):
        seen = preview(Dataset.from_list(records), tiny_tokenizer(chat=False), options=options, **own)
        assert ("\nrow weights  0 to 3, mean 1.1; 2 rows with weight 0\n" in render(seen)) == shown
        assert ("<p>Row weights: 0 to 3, mean 1.1; 2 rows with weight 0.</p>" in page(seen, "x")) == shown
        assert ("train: weights 0 to 3, mean 1.1; 2 rows with weight 0" in seen.summary.lines()) == shown
