"""The first ids of a text that is too long to be tokenised whole."""

from typing import Any

from fastkto.rows.shapes.faults import UNREADABLE, Unusable

LONG, LONGEST = 1 << 17, 1 << 21


def first_ids(tokenizer: Any, text: str, enough: int | None, where: str, **arguments: Any) -> list[int]:
    """The ids of `text`; of one of more than `LONG` characters at least the first `enough`.

    A long text is cut before it is tokenised, and of the ids only those are kept that lie two words before the last
    place where a special token would end before the cut: a tokenizer that cuts text into special tokens and words first
    makes the ids of each by itself, so these ids are those of the whole.
    Errors: `Unusable` for a text without words that is too long for that.
    """
    if enough is None or len(text) <= LONG or not tokenizer.is_fast:
        return list(tokenizer(text=text, **arguments)["input_ids"])
    size, longest = LONG, max((len(token) for token in tokenizer.get_added_vocab()), default=0)
    while size < len(text):
        if size > LONGEST:
            raise Unusable(
                where,
                f"{len(text)} characters",
                f"text with a break at least once in {LONGEST} characters",
                "Shorten or remove the row: it would be cut at max_length, and where depends on all of it.",
                UNREADABLE,
            )
        encoding = tokenizer(text=text[:size], **arguments).encodings[0]
        whole = (
            word for word, (_, end) in zip(encoding.word_ids, encoding.offsets, strict=True) if end < size - longest
        )
        last = max((word for word in whole if word is not None), default=0)
        kept = next((i for i, word in enumerate(encoding.word_ids) if word is not None and word >= last - 1), 0)
        if kept >= enough:
            return list(encoding.ids[:kept])
        size *= 4
    return list(tokenizer(text=text, **arguments)["input_ids"])
