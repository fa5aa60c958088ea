"""Open WebUI's feedback export, as the product writes it; every right value is written by hand."""

import json
from collections import Counter

import pytest

from fastkto.cli import main
from fastkto.rows import RowOptions, normalise, read_rows
from fastkto.rows.readers import read_records


def message(key, parent, role, content, **more):
    return {
        "id": key,
        "parentId": parent,
        "childrenIds": [],
        "role": role,
        "content": content,
        "timestamp": 1_760_000_000,
        **more,
    }


def feedback(rated, rating, *messages, arena=False, user="u-77", **chat):
    history = {"currentId": messages[-1]["id"] if messages else None, "messages": {m["id"]: m for m in messages}}
    return {
        "id": f"f-{rated}",
        "user_id": user,
        "version": 0,
        "type": "rating",
        "data": {"rating": rating, "model_id": "llama-x", "reason": "", "comment": "", "sibling_model_ids": None},
        "meta": {"model_id": "llama-x", "message_id": rated, "message_index": 2, "chat_id": "c-1", "arena": arena},
        "snapshot": {"chat": {"id": "c-1", "user_id": user, "title": "T", "chat": {"history": history, **chat}}},
        "created_at": 1_760_000_001,
        "updated_at": 1_760_000_002,
        "user": {"id": user, "name": "Kim Example", "email": "kim@example.org"},
    }


CHAT = (
    message("q1", None, "user", "Was wiegt ein Spatz? 🐦"),
    message("a1", "q1", "assistant", "Etwa 30 Gramm.", model="llama-x"),
    message("a1b", "q1", "assistant", "Das weiß ich nicht.", model="other"),
    message("q2", "a1", "user", "Und ein Strauß?"),
    message("a2", "q2", "assistant", "Bis zu 150 kg.", annotation={"rating": 1}),
    message("q3", "a2", "user", "Danke!"),
    message("a3", "q3", "assistant", "Gern."),
)


def read(*records, **options):
    return read_records(records, RowOptions(reader="openwebui", **options))


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def test_the_rated_message_and_the_chain_of_its_parents_and_nothing_else_of_the_snapshot():
    [row] = read(feedback("a2", 1, *CHAT)).rows
    assert row == {
        "prompt": [user("Was wiegt ein Spatz? 🐦"), answer("Etwa 30 Gramm."), user("Und ein Strauß?")],
        "completion": [answer("Bis zu 150 kg.")],
        "label": True,
        "source": "llama-x",
    }
    [branch] = read(feedback("a1b", -1, *CHAT)).rows
    assert branch["prompt"] == [user("Was wiegt ein Spatz? 🐦")]
    assert branch["completion"] == [answer("Das weiß ich nicht.")]
    assert branch["label"] is False


def test_the_user_is_in_no_output():
    reading = read(feedback("a2", 1, *CHAT), feedback("a1", None, *CHAT))
    assert "Kim" not in repr(reading)
    assert "kim@" not in repr(reading)
    assert "u-77" not in repr(reading)


@pytest.mark.parametrize(
    ("rating", "label"), [(1, True), (-1, False), ("1", True), ("-1", False), (1.0, True), (" -1 ", False)]
)
def test_ratings_as_numbers_and_as_text(rating, label):
    assert [row["label"] for row in read(feedback("a1", rating, *CHAT)).rows] == [label]


def test_what_is_left_out_is_counted_by_kind_with_its_first_records():
    records = [
        feedback("a2", 1, *CHAT),
        feedback("a1", 1, *CHAT, arena=True),
        feedback("a1", 0, *CHAT),
        feedback("a1", None, *CHAT),
        feedback("a1", "good", *CHAT),
        feedback("a1", 1, *CHAT) | {"snapshot": None},
        feedback("zz", 1, *CHAT),
        feedback("q1", 1, *CHAT),
        feedback("a9", 1, message("a9", "gone", "assistant", "x")),
        feedback("b", 1, message("a", "b", "user", "x"), message("b", "a", "assistant", "y")),
        feedback("a", 1, message("a", None, "assistant", "Hello! How can I help?")),
        feedback("e", 1, CHAT[0], message("e", "q1", "assistant", "", error={"content": "timeout"})),
        feedback("a1", 1, message("q1", None, "user", "?", files=[{"type": "image", "url": "data:"}]), CHAT[1]),
        feedback(
            "t", 1, CHAT[0], message("t", "q1", "assistant", '<details type="tool_calls" done="true">x</details>')
        ),
        feedback("a1", 1, *CHAT) | {"data": None},
        feedback("a1", 1, *CHAT, arena=True),
    ]
    reading = read(*records)
    assert (len(reading.rows), reading.records) == (1, 16)
    assert reading.left_out.counts == {
        "arena comparisons of models, which are no thumbs": 2,
        "rated 0, neither up nor down": 1,
        "not rated": 2,
        "with the rating 'good', which is not 1, 0 or -1": 1,
        "without a snapshot of the chat": 1,
        "whose rated message is not in the snapshot": 1,
        "whose rated message is not an answer": 1,
        "with a gap in the conversation: a message's parent is not in the snapshot": 2,
        "without a question before the answer": 1,
        "with an empty answer": 1,
        "with a picture in the conversation": 1,
        "with a tool's call or its result in the conversation": 1,
    }
    assert reading.left_out.lines()[:2] == [
        "2 arena comparisons of models, which are no thumbs (records 1, 15)",
        "2 not rated (records 3, 14)",
    ]
    assert str(reading).startswith("read as openwebui: 1 rows from 16 records; left out: 2 arena")


def test_many_kinds_are_summed_up():
    reading = read(feedback("a1", 1, *CHAT), *(feedback("a1", f"{i} stars", *CHAT) for i in range(20)))
    lines = reading.left_out.lines()
    assert len(lines) == 13
    assert lines[-1] == "8 for 8 other reasons"


REASONED = """<details type="reasoning" done="true" duration="7">
<summary>Thought for 7 seconds</summary>
&gt; Is 3 &lt; 4?
&gt; They wrote &lt;/details&gt; &quot;twice&quot;.
</details>
Yes: 3 < 4 &amp; more."""
OLDER = """<details type="reasoning" done="true" duration="2">
<summary>Thought for 2 seconds</summary>
> First a tag: </details>
> then a < b.
</details>

Done."""


@pytest.mark.parametrize(
    ("content", "thought", "said"),
    [
        (REASONED, 'Is 3 < 4?\nThey wrote </details> "twice".', "Yes: 3 < 4 &amp; more."),
        (OLDER, "First a tag: </details>\nthen a < b.", "Done."),
        ('<details done="true" type="reasoning"><summary>s</summary>hm</details>Ok', "hm", "Ok"),
        (
            'A\n<details type="reasoning">\n> x\n</details>\nB\n<details type="reasoning">\n> y\n</details>',
            "x\n\ny",
            "A\n\nB",
        ),
    ],
)
def test_folded_reasoning_is_reasoning_and_never_html(content, thought, said):
    [row] = read(feedback("r", 1, CHAT[0], message("r", "q1", "assistant", content))).rows
    assert row["completion"] == [answer(said, reasoning_content=thought)]
    later = (CHAT[0], message("r", "q1", "assistant", content), message("q", "r", "user", "?"))
    [row] = read(feedback("z", 1, *later, message("z", "q", "assistant", "!"))).rows
    assert row["prompt"][1] == answer(said, reasoning_content=thought)


def test_reasoning_that_was_cut_off_leaves_no_answer():
    cut = '<details type="reasoning" done="false">\n<summary>Thinking…</summary>\n> Let me'
    good = feedback("a1", 1, *CHAT)
    reading = read(good, feedback("r", -1, CHAT[0], message("r", "q1", "assistant", cut)))
    assert reading.left_out.counts == {"with an empty answer": 1}


def test_other_html_of_an_answer_stays_as_written():
    text = "<details><summary>More</summary>\nText</details>"
    [row] = read(feedback("r", 1, CHAT[0], message("r", "q1", "assistant", text))).rows
    assert row["completion"] == [answer(text)]


@pytest.mark.parametrize("chat", [{"params": {"system": "Be brief."}}, {"system": "Be brief."}])
def test_the_chats_own_system_prompt_comes_first(chat):
    [row] = read(feedback("a1", 1, *CHAT, **chat)).rows
    assert row["prompt"] == [{"role": "system", "content": "Be brief."}, user("Was wiegt ein Spatz? 🐦")]


@pytest.mark.parametrize("reader", ["openwebui", "auto"])
@pytest.mark.parametrize("name", ["export.json", "export.jsonl"])
def test_from_a_file_to_normalised_rows(tmp_path, monkeypatch, caplog, name, reader):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    records = [
        feedback("a2", 1, *CHAT),
        feedback("a1b", "-1", *CHAT),
        feedback("a1", 1, *CHAT) | {"snapshot": None, "id": name + reader},
        feedback("r", 1, CHAT[0], message("r", "q1", "assistant", REASONED)),
    ]
    lines = [json.dumps(record) for record in records]
    (tmp_path / name).write_text("\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]")
    with caplog.at_level("WARNING"):
        rows = list(normalise(read_rows(tmp_path / name), RowOptions(reader=reader), dataset_name=name + reader))
    assert Counter(row["label"] for row in rows) == {True: 2, False: 1}
    assert rows[0]["completion"][0]["content"] == "Bis zu 150 kg."
    assert rows[2]["completion"][0]["reasoning_content"].startswith("Is 3 < 4?")
    assert (
        "read as openwebui: 3 rows from 4 records; left out: 1 without a snapshot of the chat (record 2)" in caplog.text
    )


def test_without_a_reader_the_error_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from tiny import tiny_llama, tiny_tokenizer

    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "export.json").write_text(json.dumps([feedback("a2", 1, *CHAT)]))
    assert main(["data", str(tmp_path / "export.json"), "--model", str(tmp_path / "model")]) == 1
    assert "--reader openwebui" in capsys.readouterr().err.splitlines()[-1]
