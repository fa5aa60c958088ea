"""One row as the model will see it: its tokens, which of them are scored, and both parts as text."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastkto.batch import PaddingCollator
from fastkto.errors import escaped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 24
LONGEST_CHARACTER = 8  # tokens


@dataclass(frozen=True)
class Example:
    """A row, cut at `max_length` as in training."""

    row_id: int
    where: str
    """The row or the record of the source, in words."""
    label: bool
    tokens: list[str]
    scored: list[bool]
    prompt: str
    answer: str


def example(row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", max_length: int | None, where: str) -> Example:
    """What becomes of a tokenised row."""
    batch = PaddingCollator(0, max_length, kl=False)([row])
    scored = {position + 1 for position in batch["logit_index"].tolist()}
    ids = batch["input_ids"][0].tolist()
    start = min(scored, default=len(ids))
    tokens = [*_tokens(tokenizer, ids[:start]), *_tokens(tokenizer, ids[start:])]
    prompt, answer = (str(tokenizer.decode(part)) for part in (ids[:start], ids[start:]))
    return Example(row["row_id"], where, row["label"], tokens, [i in scored for i in range(len(ids))], prompt, answer)


def _tokens(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[str]:
    """Each token as text; where several make one character, the first shows it and the others are empty."""
    texts: list[str] = []
    start = 0
    while start < len(ids):
        ends = range(start + 1, min(start + LONGEST_CHARACTER, len(ids)) + 1)
        decoded = ((end, str(tokenizer.decode(ids[start:end]))) for end in ends)
        end, text = next(((end, text) for end, text in decoded if text and "\ufffd" not in text), (start + 1, ""))
        text = text or str(tokenizer.convert_ids_to_tokens(ids[start]))
        texts += [escaped(text), *[""] * (end - start - 1)]
        start = end
    return texts


def render_example(example: Example) -> list[str]:
    """The row's prompt (a dot after each token) and its scored tokens; the middle of long ones is left out."""
    start = example.scored.index(True) if any(example.scored) else len(example.tokens)
    label = "desirable" if example.label else "undesirable"
    prompt = [f"{token}\u00b7" for token in example.tokens[:start] if token]
    scored = [f"«{token}»" for token in example.tokens[start:] if token]
    return [f"{example.where}, {label}:", f"  prompt     {_shorten(prompt)}", f"  scored     {_shorten(scored)}"]


def _shorten(tokens: list[str]) -> str:
    left_out = len(tokens) - 2 * SHOWN
    if left_out <= 0:
        return "".join(tokens)
    return f"{''.join(tokens[:SHOWN])} ...{left_out} tokens... {''.join(tokens[-SHOWN:])}"
