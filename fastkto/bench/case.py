"""What a step is timed on: the model, the rows, the settings that every system shares."""

import dataclasses
import json
import random
import re
from dataclasses import dataclass, field
from typing import Any

from fastkto.errors import InputError

SYSTEMS = ("fastkto", "fastkto-cached", "sft", "trl", "trl-compact", "trl-sft")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Case:
    """One comparison. A row is text with its label, or the lengths of seeded text."""

    model: str
    batch: int
    max_length: int
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """`prompt`, `completion`, `label`; empty: `lengths`."""
    lengths: list[tuple[int, int, bool]] = field(default_factory=list, repr=False)
    """Prompt and completion tokens, and the label, of rows of seeded words."""
    steps: int = 4
    """The first is not counted."""
    learning_rate: float = 1e-6
    dtype: str = "float32"
    bf16: bool = False
    use_peft: bool = False
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    """Of `KTOConfig`, for fastkto only."""

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Case":
        """What `to_json` wrote."""
        return cls(**json.loads(text))

    @classmethod
    def of_full_length(cls, model: str, batch: int, max_length: int, steps: int, **others: Any) -> "Case":
        """A case on rows of seeded words, all of them `max_length` tokens long."""
        lengths = full_length(batch, max_length, steps)
        return cls(model, batch, max_length, lengths=lengths, steps=steps, **others)

    def texts(self, tokenizer: Any) -> list[dict[str, Any]]:
        """The rows as text, shuffled."""
        found = [dict(row) for row in self.rows] or of_lengths(self.lengths, tokenizer, self.seed)
        random.Random(self.seed).shuffle(found)
        return found


def full_length(batch: int, max_length: int, steps: int) -> list[tuple[int, int, bool]]:
    """Rows of `max_length` tokens, half of each its prompt, every other one desirable."""
    prompt = max_length // 2
    return [(prompt, max_length - prompt, i % 2 == 0) for i in range(batch * steps)]


def of_lengths(lengths: list[tuple[int, int, bool]], tokenizer: Any, seed: int) -> list[dict[str, Any]]:
    """Rows of seeded words of one token each; a trainer appends the end-of-sequence token, so a word less is made."""
    generator, words = random.Random(seed), one_token_words(tokenizer)

    def text(tokens: int) -> str:
        return "".join(generator.choices(words, k=tokens))

    return [
        {"prompt": text(prompt), "completion": text(completion - 1), "label": bool(label)}
        for prompt, completion, label in lengths
    ]


def one_token_words(tokenizer: Any) -> list[str]:
    """Words with the space before them that the tokenizer takes as one token each."""
    found = [re.fullmatch("[Ġ▁]([a-z]{3,})", token) for token in sorted(tokenizer.get_vocab())]
    candidates = [f" {word[1]}" for word in found if word]
    words = [word for word in candidates if len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1]
    if not words:
        fix = "Give another model of the same sizes."
        name = type(tokenizer).__name__
        raise InputError("tokenizer", name, "one with words that are one token with the space before them", fix)
    return words
