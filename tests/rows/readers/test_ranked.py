"""HH, SHP and OASST: what is paired, and what is left out; right values by hand."""

import pytest

from fastkto.rows import RowOptions
from fastkto.rows.readers import read_records


def read(records, reader="auto"):
    return read_records(records, RowOptions(reader=reader))


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


def test_hh_takes_the_whole_last_turn_on_both_sides():
    start = "\n\nHuman: Is it?\n\nAssistant: It is.\n\nHuman: And you?\n\nAssistant:"
    reading = read([{"chosen": f"{start} I agree", "rejected": f"{start} I agree not"}])
    assert reading.reader == "hh"
    assert reading.rows == [
        {
            "prompt": [user("Is it?"), answer("It is."), user("And you?")],
            "chosen": [answer("I agree")],
            "rejected": [answer("I agree not")],
        }
    ]


def test_hh_leaves_out_what_is_no_pair_of_answers():
    start = "\n\nHuman: Hi\n\nAssistant:"
    records = [
        {"chosen": f"{start} a", "rejected": f"{start} b"},
        {"chosen": f"{start} a", "rejected": f"{start} a"},
        {"chosen": f"{start} a", "rejected": f"{start}"},
        {"chosen": f"{start} a\n\nHuman: so?", "rejected": f"{start} b"},
        {"chosen": f"{start} a\n\nHuman: so?\n\nAssistant: c", "rejected": f"{start} b"},
        {"chosen": f"{start} a\n\nAssistant: b", "rejected": f"{start} b"},
        {"chosen": "plain", "rejected": None},
    ]
    reading = read(records, "hh")
    assert len(reading.rows) == 1
    assert reading.left_out.counts == {
        "whose two answers are the same": 1,
        "with an empty answer": 1,
        "that do not end with an answer": 1,
        "whose two sides differ before the last turn": 1,
        "in which the two do not take turns": 1,
        "that are not transcripts of Human and Assistant": 1,
    }


def comments(a, b, post="Why?", texts=("A", "B")):
    return {
        "post_id": "x",
        "domain": "askbaking",
        "history": post,
        "human_ref_A": texts[0],
        "human_ref_B": texts[1],
        "labels": int(a > b),
        "score_A": a,
        "score_B": b,
    }


def test_shp_keeps_pairs_of_at_least_twice_the_votes():
    reading = read(
        [comments(8, 4), comments(3, 6, texts=("C", "D")), comments(7, 4), comments(5, 0), comments(4, 2, "")]
    )
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in reading.rows] == [
        ([user("Why?")], [answer("A")], [answer("B")]),
        ([user("Why?")], [answer("D")], [answer("C")]),
    ]
    assert reading.left_out.counts == {
        "with less than 2 times the votes of the other answer": 1,
        "with fewer votes than 1": 1,
        "with an empty question or answer": 1,
    }


def test_shp_keeps_five_pairs_a_post_the_same_in_any_order():
    records = [comments(10, 1, texts=(f"A{i}", f"B{i}")) for i in range(9)] + [comments(10, 1, "Other?")]
    reading, backwards = read(records), read(records[::-1])
    assert len(reading.rows) == 6
    assert reading.left_out.counts == {"beyond 5 pairs of one post": 4}
    assert sorted(map(str, reading.rows)) == sorted(map(str, backwards.rows))


def node(key, parent, role, text, rank=None, **more):
    fixed = {"message_tree_id": "q", "user_id": "u-5", "lang": "de", "deleted": False}
    return fixed | {"message_id": key, "parent_id": parent, "role": role, "text": text, "rank": rank} | more


TREE = [
    node("q", None, "prompter", "Frage?"),
    node("a", "q", "assistant", "Gut.", 0),
    node("b", "q", "assistant", "Mittel.", 1),
    node("c", "q", "assistant", "Schlecht.", 2),
    node("d", "q", "assistant", "Ungereiht."),
    node("f", "a", "prompter", "Und?"),
    node("g", "f", "assistant", "Ja.", 1),
    node("h", "f", "assistant", "Nein.", 0),
    node("k", "c", "prompter", "Wie?"),
    node("l", "k", "assistant", "So.", 0),
    node("m", "k", "assistant", "Weg.", 1, deleted=True),
]


def nested(key):
    own = next(message for message in TREE if message["message_id"] == key)
    fields = {name: own[name] for name in ("message_id", "role", "text", "rank", "lang", "deleted")}
    return fields | {"replies": [nested(one["message_id"]) for one in TREE if one["parent_id"] == key]}


@pytest.mark.parametrize(
    "records", [TREE, TREE[::-1], [{"message_tree_id": "q", "tree_state": "ready", "prompt": nested("q")}]]
)
def test_oasst_pairs_the_best_with_the_worst(records):
    reading = read(records)
    assert reading.reader == "oasst"
    assert sorted(reading.rows, key=lambda row: len(row["prompt"])) == [
        {"prompt": [user("Frage?")], "chosen": [answer("Gut.")], "rejected": [answer("Schlecht.")], "source": "de"},
        {
            "prompt": [user("Frage?"), answer("Gut."), user("Und?")],
            "chosen": [answer("Nein.")],
            "rejected": [answer("Ja.")],
            "source": "de",
        },
    ]
    assert reading.left_out.counts == {
        "answers ranked between the best and the worst": 1,
        "answers without a rank": 1,
        "answers with no other of another rank": 1,
        "answers that are deleted": 1,
    }
    assert "u-5" not in repr(reading)


def test_oasst_a_parent_that_is_missing_or_deleted():
    ranked = [node("a", "q", "assistant", "x", 0), node("b", "q", "assistant", "y", 1)]
    whole = [node("z", None, "prompter", "?"), node("c", "z", "assistant", "x", 0), node("d", "z", "assistant", "y", 1)]
    reading = read(ranked + whole)
    assert len(reading.rows) == 1
    assert [*reading.left_out.counts] == [
        "pairs of answers with a gap in the conversation: a message's parent is not in the file"
    ]
    reading = read([node("q", None, "prompter", "?", deleted=True), *ranked, *whole])
    assert [*reading.left_out.counts] == ["pairs of answers with a deleted message in the conversation"]
