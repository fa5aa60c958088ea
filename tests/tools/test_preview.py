"""`fastkto data` shows what is trained on, and refuses what training would refuse."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from tiny import tiny_tokenizer
from torch.utils.data import DataLoader

from fastkto.batch import PaddingCollator
from fastkto.errors import InputError
from fastkto.pairs import PairableSampler
from fastkto.pairs.balance import batch_size_for
from fastkto.rows import RowOptions, normalise, read_rows
from fastkto.rows.tokens import tokenize
from fastkto.tools.preview.gathering import preview, render

DEMO = Path(__file__).parents[3] / "shared" / "data" / "kto_en_demo.json"


def rows(n, **more):
    return [{"prompt": f"question {i}?", "completion": f" answer {i}", "label": i % 4 == 0} | more for i in range(n)]


def look(records, tokenizer=None, **options):
    arguments = {"max_length": 64, "batch_size": 4} | options
    return preview(Dataset.from_list(records), tokenizer or tiny_tokenizer(chat=False), **arguments)


def test_three_rows_with_the_scored_tokens_marked():
    shown = look(rows(8))
    assert [example.row_id for example in shown.examples] == [0, 1, 2]
    first = shown.examples[0]
    assert "".join(first.tokens) == "question 0? answer 0</s>"
    assert "".join(t for t, scored in zip(first.tokens, first.scored, strict=True) if scored) == " answer 0</s>"
    text = render(shown)
    assert "row 0, desirable:" in text
    assert "« »«a»«n»«s»«w»«e»«r»« »«0»«</s>»" in text
    assert "q·u·e·s·t·i·o·n· ·0·?·" in text


def test_an_empty_prompt_shows_its_first_token_unscored_and_long_rows_lose_their_middle():
    shown = look([*rows(6), {"prompt": "", "completion": "\n" * 200, "label": True}], max_length=150)
    example = preview(
        Dataset.from_list([{"prompt": "", "completion": "\n" * 200, "label": True}, *rows(6)]),
        tiny_tokenizer(chat=False),
        max_length=150,
        batch_size=4,
    ).examples[0]
    assert example.scored == [False] + [True] * 149
    text = render(look([{"prompt": "p" * 90, "completion": "\nb", "label": True}, *rows(6)], max_length=150))
    assert "...42 tokens..." in text
    assert "«\\n»«b»" in text
    assert shown.report.cut == 1


def test_an_emoji_shows_as_one():
    text = render(look([{"prompt": "caf\xe9 ", "completion": "\U0001f600!", "label": True}, *rows(6)]))
    assert "\xe9\xb7" in text
    assert "\xab\U0001f600\xbb\xab!\xbb" in text


def test_counts():
    records = rows(8)
    records += [records[1], records[1] | {"label": True}, rows(1)[0] | {"prompt": "p" * 64}]
    shown = look(records)
    assert (shown.source, shown.desirable, shown.undesirable) == (11, 3, 7)
    assert (shown.report.dropped, shown.duplicates, shown.contradictions, shown.prompts) == (1, 2, 1, 8)
    text = render(shown)
    assert "10 to train on, from 11 in the source; 8 prompts" in text
    assert "3 desirable, 7 undesirable" in text
    assert "1 rows whose prompt fills max_length=64" in text
    assert "2 rows repeat another's prompt and completion (1 of them with both labels)" in text


def test_lengths():
    records = [{"prompt": "p" * (i + 1), "completion": "c" * (i + 1), "label": True} for i in range(100)]
    shown = look(records, max_length=None)
    assert shown.prompt_lengths == [1, 10, 50, 90, 99, 100]
    assert shown.completion_lengths == [2, 11, 51, 91, 100, 101]


def test_a_stratified_order_holds_both_classes_in_every_batch():
    assert look(rows(80)).one_class > 0.2
    shown = look(rows(80), strategy="stratified")
    assert shown.one_class == 0
    assert "0.0% of micro-batches of 4 are expected to hold one class\n" in render(shown)


def test_balance_and_ties():
    scores = [record | {"label": i % 5} for i, record in enumerate(rows(100))]
    labelled = [record | {"label": i % 5 == 0} for i, record in enumerate(rows(100))]
    shown = look(scores, options=RowOptions(label_threshold=4))
    assert (shown.desirable, shown.undesirable, shown.ties) == (20, 80, 20)
    text = render(shown)
    assert "20 at the threshold, read as desirable" in text
    assert f"{shown.one_class:.1%} of micro-batches of 4" in text
    assert f"hold one class; batches of {batch_size_for(20, 80)} bring it below 5%" in text
    assert "; train_sampling_strategy=stratified, or batches of" in render(look(labelled, batch_size=5))
    assert "outside the paper's rule; desirable_weight from 4 to 6 fits" in text
    assert "inside the paper's rule" in render(look(rows(100), desirable_weight="auto"))
    one_class = render(look([record | {"label": True} for record in rows(8)]))
    assert "one class only" in one_class
    assert "add rows of the other class" in one_class


def test_streams_show_their_first_rows():
    def endless():
        while True:
            yield from rows(100)

    stream = IterableDataset.from_generator(endless)
    shown = preview(stream, tiny_tokenizer(chat=False), max_length=64, batch_size=4)
    assert (shown.source, shown.duplicates) == (1000, 900)
    assert "from first 1000 in the source" in render(shown)


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (rows(1), {}, "1 rows with one row"),
        (rows(8, prompt="one"), {}, "one prompt"),
        (rows(8, prompt="p" * 64), {}, "max_length"),
        (rows(8, label="yes"), {}, "row 0, column 'label'"),
        (rows(8), {"batch_size": 1}, "max_tokens_per_forward"),
        (rows(8, prompt=[{"role": "user", "content": "a"}]), {}, "the same kind as the prompt"),
    ],
)
def test_what_training_refuses(records, options, message):
    with pytest.raises(InputError, match=message):
        look(records, **options)


def test_losses_without_kl_take_one_row():
    assert look(rows(1), kl=False, batch_size=1).refilled == 0


def test_a_diverging_template_is_shown():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|assistant|>'", "'<|assistant|><think>'")
    chat = [
        {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "b"}], "label": True}
        for i in range(4)
    ]
    assert "4 prompts are tokenised differently before a completion; left out: '<think>'" in render(
        look(chat, tokenizer)
    )


@pytest.mark.skipif(not DEMO.exists(), reason="the shared demo data is not beside this checkout")
@pytest.mark.parametrize("strategy", ["random", "stratified"])
def test_what_it_passes_can_be_batched_in_every_epoch(strategy):
    tokenizer = tiny_tokenizer()
    options = RowOptions(every_assistant_turn=True)
    shown = preview(
        read_rows(DEMO), tokenizer, max_length=700, batch_size=5, options=options, strategy=strategy, seed=3
    )
    data = tokenize(normalise(read_rows(DEMO), options), tokenizer, max_length=700)
    sampler = PairableSampler(
        data["prompt_key"], data["conversation"], data["label"], 5, strategy=strategy, seed=3, fixed_batches=False
    )
    for epoch in range(3):
        sampler.set_epoch(epoch)
        loader = DataLoader(data, batch_size=5, sampler=sampler, collate_fn=PaddingCollator(0, 700))
        seen = torch.cat([batch["row_ids"] for batch in loader])
        assert len(seen) == len(data) + shown.refilled
        assert {*seen.tolist()} == {*data["row_id"]}
    assert f"{len(data)} to train on, from 300" in render(shown)
