"""Public reports, A1 to A18: which column means what, and what a label says. Right ids are stock's."""

import logging

import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from stock import WORDS, answer, call, chat_ids, right, template, text_ids, trained, user
from tiny import tiny_tokenizer

from fastkto.errors import InputError
from fastkto.rows import RowOptions, normalise
from fastkto.rows.labels import warn_once

PLAIN, CHAT = tiny_tokenizer(chat=False), tiny_tokenizer()
CHAT.chat_template = template("qwen3")
SCORES = [{"prompt": f"q {w}", "completion": f" {w}", "label": n} for w, n in zip(WORDS, (1, 3, 4, 5), strict=True)]


def labels(rows, **options):
    return [row["label"] for row in normalise(Dataset.from_list(rows), RowOptions(**options))]


def test_A1_a_named_prompt_is_the_prompt_of_pairs():
    rows = [{"q": {"text": f"What is {w}?"}, "chosen": f" {w} is old.", "rejected": f" {w}? No."} for w in WORDS]
    expected = right(
        (text_ids(PLAIN, r["q"]["text"], r[k]), k == "chosen") for r in rows for k in ("chosen", "rejected")
    )
    assert trained(Dataset.from_list(rows), PLAIN, prompt_column="q.text") == expected


def test_A2_what_is_named_wins_over_what_is_found():
    rows = [
        {"prompt": f"q {w}", "chosen": "a b", "rejected": "a c", "response": f" {w}", "thumb": i % 2}
        for i, w in enumerate(WORDS)
    ]
    expected = right((text_ids(PLAIN, r["prompt"], r["response"]), r["thumb"]) for r in rows)
    named = {"completion_column": "response", "label_column": "thumb"}
    assert trained(Dataset.from_list(rows), PLAIN, **named) == expected


def test_A2_columns_of_nothing_do_not_count():
    rows = [row | {"chosen": None, "rejected": None, "messages": []} for row in SCORES]
    assert labels(rows, label_threshold=4) == [False, False, True, True]


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        (
            {"chosen": "a b", "rejected": "a c"},
            {"label_threshold": 4},
            "prompt . completion . label.*chosen . rejected",
        ),
        (
            {"messages": [user("a"), answer("b")]},
            {"label_threshold": 4},
            "prompt . completion . label.*messages . label",
        ),
        ({}, {"label_column": "thumb"}, "a column 'thumb'. Correct --label_column"),
    ],
)
def test_A2_a_contradiction_names_both(more, options, message):
    with pytest.raises(InputError, match=message):
        labels([row | more for row in SCORES], **options)


def test_A2_a_label_for_pairs_is_a_contradiction():
    rows = [{"chosen": "a b", "rejected": "a c", "thumb": 1}] * 2
    for options in ({"label_column": "thumb"}, {"label_threshold": 3}, {"label_map": ["up=true"]}):
        with pytest.raises(InputError, match="chosen . rejected"):
            labels(rows, **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_A3_the_names_of_classes_are_labels(streaming):
    def rows(*names):
        features = Features(prompt=Value("string"), completion=Value("string"), label=ClassLabel(names=list(names)))
        cells = [{"prompt": f"q {w}", "completion": w, "label": i % len(names)} for i, w in enumerate(WORDS)]
        made = Dataset.from_list(cells, features=features)
        return made.to_iterable_dataset() if streaming else made

    def read(rows, **options):
        return [row["label"] for row in normalise(rows, RowOptions(**options))]

    assert read(rows("good", "bad"), label_map=["good=true", "bad=false"]) == [True, False] * 2
    assert read(rows("true", "False")) == [True, False] * 2
    assert read(rows("5", "1", "4", "3"), label_threshold=4) == [True, False, True, False]
    with pytest.raises(InputError, match="got 'good', expected true, false"):
        read(rows("good", "bad"))


def test_A9_a_transform_is_applied():
    rows = Dataset.from_list([{"text": f"q {w}| {w}", "vote": i % 2} for i, w in enumerate(WORDS)])

    def split(batch):
        prompts, completions = zip(*(text.upper().split("|") for text in batch["text"]), strict=True)
        return {"prompt": list(prompts), "completion": list(completions), "label": batch["vote"]}

    shown = rows.with_transform(split)
    expected = right((text_ids(PLAIN, shown[i]["prompt"], shown[i]["completion"]), shown[i]["label"]) for i in range(4))
    assert trained(shown, PLAIN) == expected
    hidden = Dataset.from_list([row | {"chosen": "a b", "rejected": "a c"} for row in SCORES])
    shown = hidden.with_format("numpy", columns=["prompt", "completion", "label"])
    assert [row["label"] for row in normalise(shown, RowOptions(label_threshold=4))] == [False, False, True, True]


@pytest.mark.parametrize("streaming", [False, True])
def test_A15_the_users_own_columns_may_have_our_names(streaming):
    rows = [
        {"prompt": f"q {w}", "completion": f" {w}", "label": i % 2, "row_id": 7 - i, "conversation": 0}
        for i, w in enumerate(WORDS)
    ]
    data = Dataset.from_list(rows)
    once = normalise(data.to_iterable_dataset() if streaming else data, RowOptions(label_map=["1=false", "0=true"]))
    assert [(row["row_id"], row["conversation"], row["label"]) for row in once] == [
        (i, i, i % 2 == 0) for i in range(4)
    ]
    assert normalise(once) is once


def test_A15_normalised_rows_are_known_after_what_people_do_with_them(tmp_path):
    rows = normalise(Dataset.from_list([{"messages": [user("a"), answer("b")], "label": 1}] * 4))
    rows.save_to_disk(tmp_path / "saved")
    for same in (
        rows.shuffle(),
        rows.select([1, 2]),
        rows.train_test_split(0.5)["test"],
        rows.filter(lambda row: True),
    ):
        assert normalise(same) is same
    for same in (rows.to_iterable_dataset(), Dataset.load_from_disk(str(tmp_path / "saved"))):
        assert normalise(same) is same


def test_A16_a_greeting_is_context():
    rows = [{"messages": [answer("Hello!"), user("q " + w), answer(w)], "label": i % 2} for i, w in enumerate(WORDS)]
    expected = right((chat_ids(CHAT, r["messages"][:2], r["messages"][2:]), r["label"]) for r in rows)
    assert trained(Dataset.from_list(rows), CHAT, every_assistant_turn=True) == expected
    assert trained(Dataset.from_list(rows), CHAT) == expected
    system = [row | {"messages": [{"role": "system", "content": "s"}, *row["messages"]]} for row in rows]
    expected = right((chat_ids(CHAT, r["messages"][:3], r["messages"][3:]), r["label"]) for r in system)
    assert trained(Dataset.from_list(system), CHAT, every_assistant_turn=True) == expected


@pytest.mark.parametrize("prompt", [None, "Q: "])
@pytest.mark.parametrize("rejected", [None, "", "good"])
def test_A18_a_pair_without_two_answers_is_left_out_and_counted(caplog, prompt, rejected):
    rows = [{"chosen": "good", "rejected": "gone"}, {"chosen": "good", "rejected": rejected}]
    rows = [row if prompt is None else row | {"prompt": prompt} for row in rows]
    assert sorted(row["row_id"] for row in normalise(Dataset.from_list(rows))) == [0, 0]
    assert "left out, pair without two answers: 1 row (1)" in caplog.text
    with pytest.raises(InputError, match="row 0, column 'rejected'"):
        normalise(Dataset.from_list(rows[1:]))


def test_A23_text_rows_of_a_chat_model_are_said_once_and_wrapped_on_demand(caplog):
    rows = Dataset.from_list(SCORES)
    with caplog.at_level(logging.WARNING):
        assert trained(rows, CHAT, label_threshold=4) == right(
            (text_ids(CHAT, r["prompt"], r["completion"]), r["label"] >= 4) for r in SCORES
        )
    assert caplog.text.count("--chat true") == 1
    caplog.clear()
    expected = right((chat_ids(CHAT, [user(r["prompt"])], [answer(r["completion"])]), r["label"] >= 4) for r in SCORES)
    assert trained(rows, CHAT, label_threshold=4, chat=True) == expected
    assert "--chat true" not in caplog.text
    pairs = [{"prompt": "q", "chosen": " a", "rejected": " b"}]
    expected = right((chat_ids(CHAT, [user("q")], [answer(t)]), t == " a") for t in (" a", " b"))
    assert trained(Dataset.from_list(pairs), CHAT, chat=True) == expected


def test_scores_in_a_band_are_left_out_and_counted(caplog):
    assert labels(SCORES, label_band=[2, 4]) == [False, True, True]
    assert "left out, between the limits of label_band: 1 row (1)" in caplog.text
    with pytest.raises(InputError, match=r"label_band: got \[4, 2\], expected two finite numbers, the lower first"):
        labels(SCORES, label_band=[4, 2])
    with pytest.raises(InputError, match="no label_threshold beside it|no label_band beside it"):
        labels(SCORES, label_band=[2, 4], label_threshold=3)


def test_columns_by_path():
    rows = [
        {
            "inputs": {"messages": [user(f"q {w}")]},
            "outputs": {"choices": [{"message": answer(w)}]},
            "feedback_stats": {"thumb": {"avg": i % 2}},
        }
        for i, w in enumerate(WORDS)
    ]
    expected = right((chat_ids(CHAT, [user(f"q {w}")], [answer(w)]), i % 2) for i, w in enumerate(WORDS))
    names = {
        "prompt_column": "inputs.messages",
        "completion_column": "outputs.choices.0.message",
        "label_column": "feedback_stats.thumb.avg",
    }
    assert trained(Dataset.from_list(rows), CHAT, **names) == expected
    assert trained(IterableDataset.from_generator(lambda: iter(rows)), CHAT, **names) == expected
    talks = [{"inputs": {"talk": [user(w), answer(w)]}, "thumb": i % 2} for i, w in enumerate(WORDS)]
    expected = right((chat_ids(CHAT, [user(w)], [answer(w)]), i % 2) for i, w in enumerate(WORDS))
    assert trained(Dataset.from_list(talks), CHAT, prompt_column="inputs.talk", label_column="thumb") == expected


def test_a_whole_conversations_label_goes_to_every_turn_or_the_last():
    talk = [user("a"), answer("b"), user("c"), answer("d")]
    rows = [{"messages": talk, "resolved": True}]
    both = right((chat_ids(CHAT, talk[:n], talk[n : n + 1]), True) for n in (1, 3))
    assert trained(Dataset.from_list(rows), CHAT, label_column="resolved", every_assistant_turn=True) == both
    last = right([(chat_ids(CHAT, talk[:3], talk[3:]), True)])
    assert trained(Dataset.from_list(rows), CHAT, label_column="resolved") == last


def test_A24_one_pass_counts_every_fault(caplog):
    rows = [row | {"label": str(row["label"])} for row in SCORES * 3]
    for column, places in (("label", (1, 2, 5, 7)), ("completion", (3,)), ("prompt", (4, 6))):
        for i in places:
            rows[i] = rows[i] | {column: None}
    with pytest.raises(InputError) as error:
        labels(rows, label_threshold=4)
    assert "row 1, column 'label'" in str(error.value)
    assert "no label: 4 rows (1, 2, 5, ...); no prompt: 2 rows (4, 6); no answer: 1 row (3)" in str(error.value)
    assert len(labels(rows, label_threshold=4, on_unrated="drop", on_empty="drop")) == 5
    assert "left out, no label: 4 rows (1, 2, 5, ...)" in caplog.text
    with pytest.raises(InputError, match="no prompt: 2 rows"):
        labels(rows, label_threshold=4, on_unrated="drop")
    with pytest.raises(InputError, match="on_empty: got 'keep', expected drop or error"):
        RowOptions(on_empty="keep")


def test_A24_a_stream_leaves_out_what_it_may():
    warn_once.cache_clear()
    stream = IterableDataset.from_generator(lambda: iter([SCORES[0], SCORES[1] | {"label": None}, SCORES[2]]))
    options = RowOptions(label_threshold=4, on_unrated="drop")
    assert [row["row_id"] for row in normalise(stream, options)] == [0, 2]
    with pytest.raises(InputError, match="row 1, column 'label'"):
        list(normalise(stream, RowOptions(label_threshold=4)))


def test_A28_what_a_stream_holds_only_later_is_not_lost():
    def stream(last):
        return IterableDataset.from_generator(lambda: iter([SCORES[0] | dict.fromkeys(last)] * 9 + [SCORES[0] | last]))

    tools = [{"type": "function", "function": {"name": "f"}}]
    *_, last = normalise(stream({"tools": tools}), RowOptions(label_threshold=4))
    assert last["tools"] == tools
    with pytest.raises(InputError, match="row 9, column 'images'"):
        list(normalise(stream({"images": ["a.png"]}), RowOptions(label_threshold=4)))


def test_A28_columns_with_nothing_in_them_and_columns_that_are_not_used(caplog):
    rows = [row | {"images": [], "system": "Be brief.", "weight": 2.0} for row in SCORES]
    assert labels(rows, label_threshold=4) == [False, False, True, True]
    assert caplog.text.count("columns that are not used: system, weight") == 1
    with pytest.raises(InputError, match="without 'images'"):
        labels([row | {"images": ["a.png"]} for row in rows], label_threshold=4)


def test_A7_a_key_that_only_some_messages_have():
    named = [{"prompt": [user("q " + w, name="kim")], "chosen": [answer(w)], "rejected": [answer("no")]} for w in WORDS]
    expected = right((chat_ids(CHAT, r["prompt"], r[k]), k == "chosen") for r in named for k in ("chosen", "rejected"))
    assert trained(Dataset.from_list(named), CHAT) == expected
    thought = [row | {"rejected": [answer("no", reasoning_content="hm")]} for row in named]
    expected = right(
        (chat_ids(CHAT, r["prompt"], r[k]), k == "chosen") for r in thought for k in ("chosen", "rejected")
    )
    assert trained(Dataset.from_list(thought), CHAT) == expected


def test_A8_an_implicit_prompt_beside_keys_of_one_side():
    rows = [
        {"chosen": [user("q " + w), answer(w)], "rejected": [user("q " + w), answer("", tool_calls=call({"x": 1}))]}
        for w in WORDS
    ]
    expected = right((chat_ids(CHAT, r[k][:1], r[k][1:]), k == "chosen") for r in rows for k in ("chosen", "rejected"))
    assert trained(Dataset.from_list(rows), CHAT) == expected
