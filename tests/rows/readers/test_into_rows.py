"""A reader's rows on their way through `normalise`: as they were written, under the numbers of their records."""

import json

import pytest
from datasets import Dataset

from fastkto.errors import InputError
from fastkto.rows import RowOptions, normalise, read_rows
from fastkto.rows.shapes.looking import reports_of


def trace(thumb, answer="a", **more):
    return {"input": f"question {answer}", "output": answer, "sessionId": "s", "thumb": thumb} | more


def test_a_row_is_known_by_its_record_and_so_is_its_fault():
    records = [trace(None), trace(["1"]), trace([]), trace(["soso"], "b"), trace(["0"], "c"), trace(["soso"], "d")]
    options = RowOptions(reader="langfuse", label_column="thumb")
    with pytest.raises(
        InputError, match=r"train record 3, column 'label': got 'soso'.*not understood: 2 rows \(3, 5\)"
    ):
        normalise(Dataset.from_list(records), options)
    rows = normalise(Dataset.from_list([*records[:3], records[4]]), options)
    assert [*zip(rows["row_id"], rows["conversation"], rows["label"], strict=True)] == [(1, 0, True), (3, 1, False)]
    [report] = reports_of(rows)
    assert (report.reader, report.source, report.left_out) == ("langfuse", 4, ("2 not rated (records 0, 2)",))


def test_several_rows_of_a_record_share_its_number_and_may_be_left_out_each():
    answers = [{"response": f"r{i}", "overall_score": i} for i in (1, 3, 5)]
    records = [{"instruction": "Say it.", "completions": answers}, {"instruction": "Again.", "completions": answers}]
    rows = normalise(Dataset.from_list(records), RowOptions(reader="ultrafeedback", label_band=[2, 4]))
    found = [*zip(rows["row_id"], rows["completion"], rows["label"], strict=True)]
    assert found == [(0, "r1", False), (0, "r5", True), (1, "r1", False), (1, "r5", True)]
    [fault] = reports_of(rows)[0].faults
    assert (fault.rows, fault.first, fault.left_out) == (2, (0, 1), True)


def test_what_a_tool_is_called_with_stays_as_it_was_written(tmp_path):
    arguments = [{"x": None}, {"y": [1, "a"]}, {}]
    with (tmp_path / "chats.jsonl").open("w") as file:
        for each in arguments:
            call = [{"type": "function", "function": {"name": "f", "arguments": each}}]
            turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": call}]
            file.write(json.dumps({"conversations": turns, "label": True}) + "\n")
    rows = normalise(read_rows(tmp_path / "chats.jsonl"), RowOptions(reader="sharegpt"))
    assert [row["completion"][0]["tool_calls"][0]["function"]["arguments"] for row in rows] == arguments
