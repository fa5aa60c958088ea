"""A few texts in tokens, and the log-probs that a model gives them."""

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from jinja2 import TemplateError

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and 3 of 10 people liked it.",
    "Water boils at 100 degrees Celsius at sea level; on a mountain it takes less heat, because the air is thinner.",
    "def mean(values):\n    return sum(values) / len(values)\n",
)
QUESTION, ANSWER = "How do I keep bread fresh?", "Wrap it in a cloth, and keep it out of the fridge."


def token_rows(tokenizer: Any, more_tokens: Iterable[int]) -> list[list[int]]:
    """The texts, one of them as a chat where there is a template, and a row of tokens that no plain text holds."""
    texts = list(TEXTS)
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
        with contextlib.suppress(TemplateError):  # a template may want other roles
            texts.append(tokenizer.apply_chat_template(chat, tokenize=False))
    rows = [tokenizer(text)["input_ids"] for text in texts]
    rows.append([*rows[0][:1], *sorted({*tokenizer.get_added_vocab().values(), *more_tokens})[:256]])
    return [row for row in rows if len(row) > 1]


def token_logps(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Of every token but the first of each row."""
    found = []
    for row in rows:
        tokens = torch.tensor([row], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0, :-1].float()
        found.append(logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0])
    return torch.cat(found)
