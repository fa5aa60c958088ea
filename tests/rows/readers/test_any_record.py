"""Whatever a record holds, a reader gives rows of a shape that trains, counts the record, or refuses by name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkto.errors import InputError
from fastkto.rows import RowOptions
from fastkto.rows.readers import READERS, read_records

MESSAGES = {
    "m1": {"id": "m1", "parentId": None, "role": "user", "content": "q", "files": []},
    "m2": {"id": "m2", "parentId": "m1", "role": "assistant", "content": "a"},
}
SERIALISED = {"lc": 1, "id": ["langchain", "HumanMessage"], "kwargs": {"content": "q", "additional_kwargs": {}}}
NODE = {"message_tree_id": "t", "lang": "en", "deleted": False}
GOOD = {
    "openwebui": [
        {
            "data": {"rating": 1, "model_id": "x"},
            "meta": {"arena": False, "message_id": "m2"},
            "snapshot": {"chat": {"chat": {"history": {"messages": MESSAGES}, "params": {"system": "s"}}}},
        }
    ],
    "langfuse": [{"input": [{"role": "user", "content": "q"}], "output": "a", "sessionId": "s", "thumbs": [1]}],
    "langsmith": [
        {
            "inputs": {"messages": [[SERIALISED]]},
            "outputs": {"messages": [{"type": "ai", "content": [{"type": "text", "text": "a"}], "tool_calls": []}]},
            "feedback_stats": {"thumbs": {"n": 2, "avg": 1.0, "stdev": 0.0, "values": {"good": 1}}},
        },
        {
            "inputs": {"question": "q"},
            "outputs": {"output": "a"},
            "feedback_stats": {"thumbs": {"n": 2, "avg": None, "values": {"good": 1}}},
        },
    ],
    "sharegpt": [
        {
            "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
            "label": True,
            "system": "s",
        }
    ],
    "hh": [{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}],
    "shp": [{"history": "q", "human_ref_A": "a", "human_ref_B": "b", "score_A": 8, "score_B": 2, "domain": "d"}],
    "oasst": [
        NODE | {"message_id": "q", "parent_id": None, "role": "prompter", "text": "q", "rank": None},
        NODE | {"message_id": "a", "parent_id": "q", "role": "assistant", "text": "a", "rank": 0},
        NODE | {"message_id": "b", "parent_id": "q", "role": "assistant", "text": "b", "rank": 1},
    ],
    "ultrafeedback": [
        {"instruction": "q", "completions": [{"response": "a", "fine-grained_score": 4.5, "custom_system_prompt": "s"}]}
    ],
}
WORDS = [
    "",
    "m1",
    "user",
    "assistant",
    "-1",
    "1",
    "\n\nHuman: a\n\nAssistant: b",
    '[{"role": "user"}]',
    '<details type="',
]
scalars = st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.sampled_from(WORDS) | st.text(max_size=3)


anything = (
    scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "id"]), scalars)
)


def spoiled(value, draw):
    """`value` with something in it, at any depth, replaced or taken out."""
    keys = sorted(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if not keys or draw(st.integers(0, 4)) == 0:
        return draw(anything)
    key, copy = draw(st.sampled_from(keys)), value.copy()
    if isinstance(copy, dict) and draw(st.integers(0, 4)) == 0:
        del copy[key]
    else:
        copy[key] = spoiled(copy[key], draw)
    return copy


def test_the_good_records_are_read():
    for reader, records in GOOD.items():
        named = {"label_column": "thumbs"} if reader in ("langfuse", "langsmith") else {}
        assert read_records(records, RowOptions(reader=reader, **named)).left_out.counts == {}
    assert {*GOOD} == {*READERS}


@pytest.mark.parametrize("reader", READERS)
@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_record(reader, data):
    records = [*GOOD[reader], *GOOD[reader]]
    for _ in range(data.draw(st.integers(1, 3))):
        number = data.draw(st.integers(0, len(records) - 1))
        record = spoiled(records[number], data.draw)
        records[number] = record if isinstance(record, dict) else {}
    named = {"label_column": "thumbs"} if reader in ("langfuse", "langsmith") else {}
    said = ""
    try:
        reading = read_records(records, RowOptions(reader=reader, **named))
    except InputError as error:
        said, reading = str(error), None
    assert "\n" not in said
    shapes = ({"prompt", "completion", "label"}, {"messages", "label"}, {"prompt", "chosen", "rejected"})
    for row in [] if reading is None else reading.rows:
        shape = {*row} - {"source"}
        assert shape in (*shapes, {"chosen", "rejected"})
        for column in shape - {"label"}:
            messages = row[column]
            assert isinstance(messages, str) or all(isinstance(one["content"], str) for one in messages)
        assert not isinstance(row.get("label"), dict | list)
