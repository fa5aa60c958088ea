"""The part held out by prompt, and the paper's recipes: what stays depends on content and seed alone."""

import random

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st

from fastkto.errors import InputError
from fastkto.rows.selection import Selection, frac_unique, one_per_prompt, select, split_by_prompt


def row(prompt, completion="a", label=True, conversation=None):
    return {"prompt": prompt, "completion": completion, "label": label, "conversation": conversation}


def rows(*prompts):
    return [row(prompt, f"a{i}", i % 2 == 0, i) for i, prompt in enumerate(prompts)]


def split(data, size, seed=0):
    train, test = split_by_prompt(data, size, seed)
    assert sorted(train + test) == [*range(len(data))]
    return [data[i] for i in train], [data[i] for i in test]


def prompts_of(part):
    return {str(one["prompt"]) for one in part}


@given(st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=40), st.floats(0.01, 0.9), st.integers(0, 5))
def test_no_prompt_is_on_both_sides(prompts, share, seed):
    data = rows("x", "y", *prompts)
    train, test = split(data, share, seed)
    assert train
    assert test
    assert not prompts_of(train) & prompts_of(test)


def test_the_share_is_met_where_prompts_allow_it():
    data = rows(*map(str, range(200)))
    assert len(split(data, 0.1)[1]) == 20
    assert len(split(data, 7)[1]) == 7
    assert len(split(rows("a", "a", "a", "b", "b"), 0.1)[1]) == 2


def test_order_does_not_matter_and_the_seed_does():
    data = rows(*map(str, range(50)))
    shuffled = random.Random(3).sample(data, 50)
    assert prompts_of(split(data, 0.2)[1]) == prompts_of(split(shuffled, 0.2)[1])
    assert prompts_of(split(data, 0.2)[1]) != prompts_of(split(data, 0.2, seed=1)[1])


def test_turns_of_one_conversation_stay_together():
    data = [row(f"{chat} {turn}", conversation=chat) for chat in range(6) for turn in range(4)]
    train, test = split(data, 0.3)
    assert not {one["conversation"] for one in train} & {one["conversation"] for one in test}


def test_messages_with_and_without_padding_are_one_prompt():
    padded = [{"role": "user", "content": "a", "tool_calls": None}]
    data = [row([{"role": "user", "content": "a"}], conversation=0), row(padded, conversation=1), row("b")]
    assert one_per_prompt(data[:2], 0) in ([0], [1])
    assert {len(part) for part in split(data, 0.4)} == {1, 2}


def test_one_per_prompt():
    data = rows("a", "b", "a", "c", "a", "b")
    kept = [data[i] for i in one_per_prompt(data, 0)]
    assert sorted(one["prompt"] for one in kept) == ["a", "b", "c"]
    again = [data[::-1][i] for i in one_per_prompt(data[::-1], 0)]
    assert sorted(map(str, kept)) == sorted(map(str, again))
    drawn = {
        next(data[i]["completion"] for i in one_per_prompt(data, seed) if data[i]["prompt"] == "a")
        for seed in range(20)
    }
    assert drawn == {"a0", "a2", "a4"}


def test_a_fraction_of_the_unique_desirable_examples():
    data = [row(str(i % 20), label=i % 20 < 10) for i in range(40)]  # every example twice
    kept = [data[i] for i in frac_unique(data, 0.1, True, 0)]
    assert sum(one["label"] for one in kept) == 2
    assert sum(not one["label"] for one in kept) == 20
    assert len(frac_unique(data, 0.5, False, 0)) == 30
    assert frac_unique(data, 1.0, True, 0) == [*range(40)]


def test_select_splits_first_and_says_what_it_did():
    data = Dataset.from_list([one | {"row_id": i} for i, one in enumerate(rows(*"aabbccddeeffgghhiijj"))])
    chosen = select(data, Selection(0.2, one_per_prompt=True, frac_unique_undesirable=0.0), seed=1)
    assert len(chosen.test) == 4
    assert len({*chosen.test["prompt"]}) == 2
    assert all(chosen.train["label"])
    assert chosen.lines[:2] == [
        "4 rows held out for evaluation, 16 left to train on; no prompt is in both",
        "8 rows left out by one_per_prompt",
    ]
    assert chosen.lines[2] == f"{8 - len(chosen.train)} rows left out by frac_unique_undesirable=0"
    assert select(data, Selection(), seed=1).train is data


@pytest.mark.parametrize(
    ("data", "selection", "message"),
    [
        (rows("a", "a"), Selection(0.5), r"test_split_size: got 0.5, expected rows of at least two prompts"),
        (rows("a", "b"), Selection(2), r"test_split_size: got 2, expected a share below 1, or .* below 2"),
        (
            [{"prompt_ids": [1], "completion_ids": [2]}],
            Selection(2),
            r"test_split_size: got 2, .* not rows of token ids",
        ),
    ],
)
def test_what_cannot_be_chosen(data, selection, message):
    with pytest.raises(InputError, match=message):
        select(Dataset.from_list(data), selection, seed=0)


def test_streams_cannot_be_chosen_from():
    stream = IterableDataset.from_generator(lambda: iter(rows("a")))
    with pytest.raises(InputError, match="one_per_prompt: got True, expected no streaming"):
        select(stream, Selection(one_per_prompt=True), seed=0)
    assert select(stream, Selection(), seed=0).train is stream
