"""What the demo calls a good answer: short, complete, about the topic, and not going in circles."""

import re

MAX_TOKENS = 40
MIN_WORDS = 6


def fault(topic: str, text: str, tokens: int, finished: bool) -> str | None:
    """The first reason why `text` is undesirable as an answer to "Describe <topic>.", or None if it is desirable.

    `tokens` counts the completion's tokens, its end-of-turn token included; `finished` says that it ended by
    that token rather than by being cut off.
    """
    if not finished or tokens > MAX_TOKENS:
        return f"no end within {MAX_TOKENS} tokens"
    words = re.findall(r"[\w'’-]+", text.lower())
    if len(words) < MIN_WORDS:
        return f"fewer than {MIN_WORDS} words"
    if not re.search(rf"\b{re.escape(noun(topic).lower())}(s|es)?\b", text.lower()):
        return "does not name the topic"
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    if len(set(trigrams)) < len(trigrams):
        return "repeats three words"
    if not text.rstrip().endswith((".", "!", "?")):
        return "no closing punctuation"
    return None


def noun(topic: str) -> str:
    """ "a candle" -> "candle": the topic without its article."""
    return re.sub(r"^(an?|the) ", "", topic)
