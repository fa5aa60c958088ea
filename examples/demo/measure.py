"""What the demo measures, before and after training alike, all of it on topics absent from training."""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from generate import Answer, answers, prompt_ids, token_logps
from make_data import question
from rule import fault
from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 48
MAX_FALL = 0.25  # nats per token


@dataclass(frozen=True)
class Evaluation:
    """Greedy answers, one a topic, with the rule's objections by count and the untrained model's opinion.

    `untrained_logp`: the mean log-prob that the untrained model gives a token of these answers, in nats. It is the
    guard against collapse: text that the untrained model finds strange is broken, whatever the rule says of it.
    """

    answers: list[Answer]
    faults: dict[str, int]
    untrained_logp: float

    @property
    def desirable(self) -> int:
        """Answers without a fault."""
        return len(self.answers) - sum(self.faults.values())

    @property
    def share(self) -> float:
        """`desirable` out of all."""
        return self.desirable / len(self.answers)

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95% interval."""
        return wilson(self.desirable, len(self.answers))


def evaluate(
    model: PreTrainedModel, untrained: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, topics: list[str]
) -> Evaluation:
    """The model's greedy answer on each topic, judged."""
    questions = [question(topic) for topic in topics]
    outputs = answers(model, tokenizer, questions, max_new_tokens=MAX_NEW_TOKENS)
    found = Counter(
        fault(topic, answer.text, len(answer.ids), answer.finished)
        for topic, answer in zip(topics, outputs, strict=True)
    )
    found.pop(None, None)
    pairs = [(prompt_ids(tokenizer, q), answer.ids) for q, answer in zip(questions, outputs, strict=True)]
    return Evaluation(outputs, dict(found.most_common()), torch.cat(token_logps(untrained, pairs)).mean().item())


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion, at 95% with the default `z`."""
    share = successes / trials
    centre = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def goals_missed(before: Evaluation, after: Evaluation, *, gain: float) -> list[str]:
    """What the demo promises and this run did not keep."""
    fall = before.untrained_logp - after.untrained_logp
    checks = {
        f"the share of desirable answers rises by {gain:.0%} points (it rose by {after.share - before.share:.0%})": (
            after.share - before.share >= gain
        ),
        "the 95% intervals before and after do not touch": after.interval[0] > before.interval[1],
        f"the untrained model's log-prob a token falls by at most {MAX_FALL} nats (it fell by {fall:.3f})": (
            fall <= MAX_FALL
        ),
    }
    return [goal for goal, met in checks.items() if not met]


def mean_reward_margin(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    *,
    beta: float,
) -> float:
    """Mean of beta * (logp_model - logp_reference) over the desirable rows less that over the undesirable ones."""
    pairs = [_ids(tokenizer, row) for row in rows]
    policy, base = (torch.stack([logps.sum() for logps in token_logps(scorer, pairs)]) for scorer in (model, reference))
    rewards, labels = beta * (policy - base), torch.tensor([row["label"] for row in rows])
    return (rewards[labels].mean() - rewards[~labels].mean()).item()


def _ids(tokenizer: PreTrainedTokenizerBase, row: dict) -> tuple[list[int], list[int]]:
    completion = tokenizer(row["completion"][0]["content"], add_special_tokens=False)["input_ids"]
    end = [] if row["truncated"] else [tokenizer.eos_token_id]
    return prompt_ids(tokenizer, row["prompt"][0]["content"]), completion + end
