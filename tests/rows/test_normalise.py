"""Every shape of feedback becomes prompt, completion, label; every bad cell has an error that names it."""

import json
import pickle
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from datasets import Dataset, IterableDataset
from feedback import rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import HfArgumentParser

from fastkto.errors import InputError
from fastkto.rows import RowOptions, normalise, read_rows
from fastkto.rows.labels import warn_once

DEMO = Path(__file__).parents[3] / "shared" / "data" / "kto_en_demo.json"


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def streamed(records, **options):
    return list(normalise(IterableDataset.from_generator(lambda: iter(records)), RowOptions(**options)))


def test_text_and_messages_pass_as_they_are():
    text = {"prompt": "a", "completion": "b", "label": True}
    chat = {"prompt": [user("a")], "completion": [assistant("b")], "label": False}
    assert rows_of([text]) == [text | {"row_id": 0, "conversation": 0}]
    assert rows_of([chat]) == [chat | {"row_id": 0, "conversation": 0}]


def test_columns_by_name_and_what_travels_along():
    tools = [{"type": "function", "function": {"name": "f"}}]
    record = {"q": "a", "a": "b", "thumb": "up", "tools": tools, "truncated": True, "note": "dropped"}
    names = {"prompt_column": "q", "completion_column": "a", "label_column": "thumb"}
    [row] = rows_of([record], **names, label_map=["up=true", "down=false"])
    expected = {"prompt": "a", "completion": "b", "label": True, "row_id": 0, "conversation": 0, "truncated": True}
    assert row == expected | {"tools": tools}


def test_messages_give_the_last_assistant_turn():
    turns = [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]
    [row] = rows_of([{"messages": turns, "label": 1}])
    assert (row["prompt"], row["completion"], row["label"]) == (turns[:3], turns[3:4], True)


def test_every_assistant_turn_is_a_row_of_one_conversation():
    turns = [user("a"), assistant("b", label=False), user("c"), assistant("d", label=None)]
    records = [{"messages": turns, "label": True, "truncated": True}] * 2
    rows = rows_of(records, every_assistant_turn=True)
    assert [row["label"] for row in rows] == [False, True] * 2
    assert [row["conversation"] for row in rows] == [0, 0, 1, 1]
    assert [len(row["prompt"]) for row in rows] == [1, 3] * 2
    assert [row["truncated"] for row in rows] == [False, True] * 2
    assert [row["label"] for row in rows_of([{"messages": turns[:2], "label": True}])] == [False]


def test_turns_without_any_label_are_context_only():
    turns = [user("a"), assistant("b", label=None), user("c"), assistant("d", label=True)]
    [row] = rows_of([{"messages": turns}], every_assistant_turn=True)
    assert row["completion"][0]["content"] == "d"
    with pytest.raises(InputError, match=r"row 0, column 'label'.*a label"):
        rows_of([{"messages": [user("a"), assistant("b")]}], every_assistant_turn=True)


PAIRED = [{"prompt": f"q{i} ", "chosen": "good", "rejected": "bad"} for i in range(500)]


def test_paired_data_is_unpaired_and_leaves_no_run_of_one_label():
    rows = rows_of(PAIRED)
    assert sorted(row["row_id"] for row in rows) == sorted([*range(500)] * 2)
    assert all(row["label"] == (row["completion"] == "good") for row in rows)
    assert all(row["conversation"] == row["row_id"] and row["prompt"] == f"q{row['row_id']} " for row in rows)
    assert max(len([*run]) for _, run in groupby(row["label"] for row in rows)) < 20
    assert sum(one["row_id"] == two["row_id"] for one, two in pairwise(rows)) < 20
    assert rows == rows_of(PAIRED)
    stream = streamed(PAIRED)
    assert max(len([*run]) for _, run in groupby(row["label"] for row in stream)) < 20
    key = json.dumps
    assert sorted(map(key, rows)) == sorted(map(key, ({k: row[k] for k in rows[0]} for row in stream)))


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": "Q: sky? A: blue", "rejected": "Q: sky? A: red"},
        {"chosen": "one two", "rejected": "one too"},
        {"chosen": "the same and more", "rejected": "the same"},
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b"), user("c"), assistant("d")]},
    ],
)
def test_implicit_prompt_is_what_trl_extracts(record):
    from trl import extract_prompt

    expected = extract_prompt(record)
    got = {row["label"]: row for row in rows_of([record])}
    assert got[True]["prompt"] == got[False]["prompt"] == expected["prompt"]
    assert got[True]["completion"] == expected["chosen"]
    assert got[False]["completion"] == expected["rejected"]


def test_text_prompt_beside_whole_conversations_is_not_repeated():
    chosen, rejected = [user("a"), assistant("b")], [user("a"), assistant("c")]
    rows = rows_of([{"prompt": "a", "chosen": chosen, "rejected": rejected}])
    assert [row["prompt"] for row in rows] == [[user("a")]] * 2


def test_streaming_gives_the_same_rows_and_reads_no_further_than_asked():
    read = []

    def source():
        for i in range(100):
            read.append(i)
            yield {"messages": [user(f"a{i}"), assistant("b")], "label": i % 2}

    stream = iter(normalise(IterableDataset.from_generator(source)))
    first = next(stream)
    assert first["row_id"] == 0
    assert first["label"] is False
    assert max(read) < 10
    assert next(stream)["row_id"] == 1


def test_normalised_and_tokenised_data_pass_through():
    rows = normalise(Dataset.from_list([{"messages": [user("a"), assistant("b")], "label": 1}]))
    assert normalise(rows) is rows
    tokens = Dataset.from_list([{"prompt_ids": [1], "completion_ids": [2], "label": True}])
    assert normalise(tokens) is tokens


def test_options_are_command_line_arguments():
    line = ["--label_map", "up=true", "down=false", "--label_threshold", "3.5", "--every_assistant_turn"]
    [options] = HfArgumentParser(RowOptions).parse_args_into_dataclasses(line)
    assert options == RowOptions(label_map=["up=true", "down=false"], label_threshold=3.5, every_assistant_turn=True)


GOOD = {"prompt": "a", "completion": "b", "label": True}
CHAT = {"prompt": [user("a")], "completion": [assistant("b")], "label": True}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (GOOD | {"prompt": None}, "row 0, column 'prompt'.*The cell is empty"),
        (GOOD | {"completion": None}, "row 0, column 'completion'.*The cell is empty"),
        (GOOD | {"completion": ""}, "row 0, column 'completion'.*at least one token"),
        (GOOD | {"prompt": 7}, "row 0, column 'prompt'.*text or a list of messages"),
        (GOOD | {"completion": [assistant("b")]}, "row 0, column 'completion'.*the same kind as the prompt"),
        (GOOD | {"truncated": "perhaps"}, "row 0, column 'truncated'.*true or false"),
        (CHAT | {"prompt": []}, "row 0, column 'prompt'.*at least one message"),
        (CHAT | {"prompt": [{"content": "a"}]}, "row 0, column 'prompt', message 0.*'role'"),
        (CHAT | {"prompt": ["a"]}, "row 0, column 'prompt', message 0.*'role'"),
        (CHAT | {"prompt": [{"role": "user"}]}, "row 0, column 'prompt', message 0.*'content'"),
        (CHAT | {"completion": [user("b")]}, "row 0, column 'completion'.*an assistant message"),
        ({"messages": [user("a")], "label": True}, "row 0, column 'messages'.*an assistant turn"),
        ({"messages": [assistant("a")], "label": True}, "row 0, column 'messages'.*a message before"),
        ({"messages": "a", "label": True}, "row 0, column 'messages'.*a list of messages"),
        ({"messages": [user("a"), assistant("b")], "label": None}, "row 0, column 'label'"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "row 0, column 'chosen'.*a first message"),
        ({"prompt": [user("a")], "chosen": "a", "rejected": "b"}, "row 0, column 'prompt'.*text, as chosen"),
    ],
)
def test_bad_cells(record, message):
    for read in (rows_of, streamed):
        with pytest.raises(InputError, match=f"(?s){message}"):
            read([record])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"completion": "b", "label": True}, r"a column 'prompt'\. Name yours with --prompt_column"),
        ({"prompt": "a", "completion": "b"}, r"a column 'label'\. Name yours with --label_column"),
        ({"prompt": "a", "answer": "b"}, r"got \['prompt', 'answer'\].*--completion_column"),
        ({"prompt": "a", "completion": "b", "label": True, "images": ["x.png"]}, r"rows of text, without 'images'"),
    ],
)
def test_missing_columns(record, message):
    for read in (rows_of, streamed):
        with pytest.raises(InputError, match=message):
            read([record])


def test_empty_datasets():
    with pytest.raises(InputError, match="at least one row"):
        normalise(Dataset.from_list([]))
    with pytest.raises(InputError, match="at least one row"):
        normalise(IterableDataset.from_generator(lambda: iter(())))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "label"]), inner),
    max_leaves=6,
)
message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": json_values})
cell = json_values | st.lists(message | json_values, max_size=4)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["prompt", "completion", "label", "chosen", "rejected", "messages"]), cell))
def test_any_row_is_read_or_refused_by_name(record):
    record |= {"truncated": False}
    for every_assistant_turn in (False, True):
        said = "train "
        try:
            for row in streamed([record], every_assistant_turn=every_assistant_turn):
                assert isinstance(row["label"], bool)
                assert type(row["prompt"]) is type(row["completion"])
                json.dumps(row, ensure_ascii=False).encode()
        except InputError as error:
            said = str(error)
        assert said.startswith("train ")


def test_a_formatted_dataset_is_read_as_any_other():
    data = Dataset.from_list([GOOD, GOOD | {"prompt": "c"}]).with_format("torch")
    assert [row["label"] for row in normalise(data)] == [True, True]


def test_half_characters_and_nul_bytes_do_not_crash(caplog):
    warn_once.cache_clear()
    record = CHAT | {"prompt": [user("\ud83d\ude00 \ud83d")], "completion": [assistant("a\0b")]}
    rows = streamed([record, record])
    assert rows[0]["prompt"][0]["content"] == "\U0001f600 \ufffd"
    assert rows[0]["completion"][0]["content"] == "a\0b"
    assert caplog.text.count("half a character") == 1


def test_row_errors_survive_the_trip_from_a_worker():
    error = pickle.loads(pickle.dumps(InputError("row 3", "x", "y", "Fix.")))
    assert (type(error), str(error)) == (InputError, "row 3: got 'x', expected y. Fix.")


@pytest.mark.skipif(not DEMO.exists(), reason="the shared demo data is not beside this checkout")
def test_demo_data():
    raw = read_rows(DEMO)
    rows = normalise(raw)
    assert len(rows) == 300
    assert sum(rows["label"]) == 150
    assert all(row["prompt"] + row["completion"] == source["messages"] for row, source in zip(rows, raw, strict=True))
    every = normalise(raw, RowOptions(every_assistant_turn=True))
    assert len(every) == sum(m["role"] == "assistant" for row in raw for m in row["messages"]) > 300
    assert list(normalise(read_rows(DEMO, streaming=True))) == list(rows)
