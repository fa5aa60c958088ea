"""Products that a mapping covers, in the forms in which they export; right values by hand."""

import json

import pytest
from datasets import Dataset

from fastkto.errors import InputError
from fastkto.rows import RowOptions, normalise
from fastkto.rows.readers import read_records


def read(records, reader, **options):
    return read_records(records, RowOptions(reader=reader, **options))


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


def trace(**more):
    return {
        "id": "t-1",
        "timestamp": "2026-01-05T10:00:00.000Z",
        "name": "support",
        "userId": "kim@example.org",
        "sessionId": "s-1",
        "tags": ["prod"],
        "input": "How late are you open?",
        "output": "Until 18:00 ☕",
        "metadata": None,
        "thumbs": [1],
        "tone": None,
    } | more


def langfuse(*records, label_column="thumbs", **options):
    return read(records, "langfuse", label_column=label_column, **options)


def test_langfuse_one_column_a_score_named_by_the_user():
    chat = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]}
    choices = {"choices": [{"message": {"role": "assistant", "content": "Hello."}}]}
    reading = langfuse(
        trace(),
        trace(thumbs=None),
        trace(thumbs=[]),
        trace(thumbs=[0, 0], input=chat, output=choices),
        trace(thumbs=[1, 0]),
        trace(thumbs=["True"], input=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], output="Hello."),
        trace(output=None),
        trace(input={"args": [1]}),
    )
    assert reading.rows == [
        {"prompt": "How late are you open?", "completion": "Until 18:00 ☕", "label": 1, "source": "support"},
        {
            "prompt": [{"role": "system", "content": "Be kind."}, user("Hi")],
            "completion": [answer("Hello.")],
            "label": 0,
            "source": "support",
        },
        {"prompt": [user("Hi")], "completion": [answer("Hello.")], "label": True, "source": "support"},
    ]
    assert reading.left_out.counts == {
        "not rated": 2,
        "rated differently by several people": 1,
        "with an empty question or answer": 1,
        "whose question or answer is neither text nor messages": 1,
    }
    assert "kim" not in repr(reading)


def test_langfuse_cells_of_a_csv_hold_json():
    cells = {"input": '{"messages": [{"role": "user", "content": "Hi"}]}', "output": '{"content": "Hello."}'}
    assert langfuse(trace(thumbs="[1]", **cells)).rows[0]["prompt"] == [user("Hi")]
    assert langfuse(trace(output='{"a": 1}')).rows[0]["completion"] == '{"a": 1}'
    assert langfuse(trace(output="[draft] no")).rows[0]["completion"] == "[draft] no"


def test_scores_are_averaged_only_where_they_are_read_as_scores():
    records = [trace(stars=[5, 4]), trace(stars=[3]), trace(stars=["2"])]
    assert [row["label"] for row in langfuse(*records, label_column="stars", label_threshold=4).rows] == [4.5, 3, 2]
    assert [row["label"] for row in langfuse(*records, label_column="stars", label_band=[2, 4]).rows] == [4.5, 3, 2]
    assert [row["label"] for row in langfuse(*records, label_column="stars").rows] == [3, 2]


def test_a_score_that_was_not_named_or_is_not_there_is_an_error_that_lists_them():
    for name in ("label", "thumb"):
        with pytest.raises(InputError, match=rf"label_column: got '{name}', expected the name of a rating \(thumbs\)"):
            langfuse(trace(), label_column=name)


def run(thumb=None, **more):
    return {
        "id": "r-1",
        "name": "chat",
        "run_type": "chain",
        "inputs": json.dumps({"messages": [{"role": "user", "content": "Why is the sky blue?"}]}),
        "outputs": json.dumps({"output": "Rayleigh scattering."}),
        "feedback_stats": {"thumb": thumb, "length": None},
        "extra": None,
    } | more


GENERATIONS = {
    "generations": [
        [
            {
                "text": "Rayleigh.",
                "message": {
                    "lc": 1,
                    "type": "constructor",
                    "id": ["langchain", "schema", "messages", "AIMessage"],
                    "kwargs": {"content": "Rayleigh.", "additional_kwargs": {}, "type": "ai"},
                },
            }
        ]
    ]
}
CONSTRUCTED = {
    "messages": [
        [
            {"lc": 1, "type": "constructor", "id": ["langchain", "HumanMessage"], "kwargs": {"content": "Why?"}},
        ]
    ]
}


@pytest.mark.parametrize("label_column", ["thumb", "feedback_stats.thumb", "feedback_stats.thumb.avg"])
def test_langsmith_feedback_by_key(label_column):
    runs = [
        run({"n": 1, "avg": 1.0, "values": {}}),
        run({"n": 2, "avg": 0.0, "stdev": 0.0}, inputs=CONSTRUCTED, outputs=GENERATIONS),
        run(),
    ]
    reading = read(runs, "langsmith", label_column=label_column)
    assert reading.rows == [
        {
            "prompt": [user("Why is the sky blue?")],
            "completion": [answer("Rayleigh scattering.")],
            "label": 1.0,
            "source": "chat",
        },
        {"prompt": [user("Why?")], "completion": [answer("Rayleigh.")], "label": 0.0, "source": "chat"},
    ]
    assert reading.left_out.counts == {"not rated": 1}


def test_langsmith_values_disagreement_and_runs_that_call_tools():
    conversation = [{"type": "human", "content": "Why?"}, {"type": "ai", "content": "Because."}]
    tools = [
        *conversation[:1],
        {"type": "ai", "content": "", "tool_calls": [{"id": "1"}]},
        {"type": "tool", "content": "x"},
    ]
    runs = [
        run({"n": 2, "avg": None, "values": {"good": 2, "bad": 0}}, outputs={"messages": conversation}),
        run({"n": 2, "avg": None, "values": {"good": 1, "bad": 1}}),
        run({"n": 2, "avg": 0.5, "stdev": 0.5}),
        run({"n": 1, "avg": None, "values": {"bad": 1}}, outputs={"messages": [*tools, conversation[1]]}),
    ]
    reading = read(runs, "langsmith", label_column="thumb")
    assert [(row["completion"], row["label"]) for row in reading.rows] == [([answer("Because.")], "good")]
    assert reading.left_out.counts == {
        "rated differently by several people": 2,
        "in which the answer calls tools": 1,
    }


def test_langsmith_from_parquet(tmp_path):
    path = str(tmp_path / "runs.parquet")
    stats = [{"thumb": {"n": 1, "avg": 1.0, "values": {}}}, {"thumb": {"n": 1, "avg": 0.0}}, {}]
    Dataset.from_list([run() | {"feedback_stats": json.dumps(one)} for one in stats]).to_parquet(path)
    rows = normalise(Dataset.from_parquet(path), RowOptions(reader="auto", label_column="thumb"))
    assert rows["label"][:] == [True, False]
    with pytest.raises(InputError, match=r"got 'stars', expected the name of a rating \(thumb\)"):
        normalise(Dataset.from_parquet(path), RowOptions(reader="auto", label_column="stars"))


def test_sharegpt():
    turns = [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    odd = [{"from": "human", "value": "Q"}, {"from": "observation", "value": "{}"}]
    reading = read([{"conversations": turns, "label": False}, {"conversations": odd, "label": True}], "sharegpt")
    messages = [{"role": "system", "content": "S"}, user("Q"), answer("A")]
    assert reading.rows == [{"messages": messages, "label": False}]
    assert reading.left_out.counts == {"with a message by 'observation', a role that is not known": 1}
    [row] = read([{"conversations": turns[1:], "system": "S", "thumb": "up"}], "sharegpt", label_column="thumb").rows
    assert row == {"messages": messages, "label": "up"}


def test_sharegpt_pairs():
    pair = {"chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}}
    [row] = read([{"conversations": [{"from": "human", "value": "Q"}], **pair}], "auto").rows
    assert row == {"prompt": [user("Q")], "chosen": [answer("A")], "rejected": [answer("B")]}


def test_ultrafeedback_as_rated():
    record = {
        "source": "flan",
        "instruction": "Add 2 and 2.",
        "models": ["a", "b"],
        "completions": [
            {"response": "4", "overall_score": 9.0, "fine-grained_score": 4.75, "custom_system_prompt": "Be exact."},
            {"response": "5", "overall_score": 2.0, "fine-grained_score": 1.25, "custom_system_prompt": ""},
            {"response": "", "overall_score": 2.0, "fine-grained_score": 1.0},
        ],
    }
    reading = read([record], "ultrafeedback")
    assert reading.rows == [
        {
            "prompt": [{"role": "system", "content": "Be exact."}, user("Add 2 and 2.")],
            "completion": [answer("4")],
            "label": 4.75,
            "source": "flan",
        },
        {"prompt": "Add 2 and 2.", "completion": "5", "label": 1.25, "source": "flan"},
    ]
    assert reading.left_out.counts == {"with an empty question or answer": 1}
    assert read([record], "ultrafeedback", label_column="overall_score").rows[0]["label"] == 9.0


def test_ultrafeedback_as_binarized():
    def side(text, question="Q"):
        return [user(question), answer(text)]

    records = [
        {"prompt": "Q", "chosen": side("A"), "rejected": side("B"), "score_chosen": 8.0, "score_rejected": 6.5},
        {"prompt": "Q", "chosen": side("A"), "rejected": side("B"), "score_chosen": 6.0, "score_rejected": 6.0},
        {"prompt": "Q", "chosen": side("A"), "rejected": side("A"), "score_chosen": 8.0, "score_rejected": 6.0},
        {"prompt": "Q", "chosen": side("A"), "rejected": side("B", "q"), "score_chosen": 8.0, "score_rejected": 6.0},
    ]
    reading = read(records, "auto")
    assert reading.reader == "ultrafeedback"
    assert reading.rows == [{"prompt": [user("Q")], "chosen": [answer("A")], "rejected": [answer("B")]}]
    assert reading.left_out.counts == {
        "rated the same on both sides": 1,
        "whose two answers are the same": 1,
        "whose two sides differ before the last turn": 1,
    }
