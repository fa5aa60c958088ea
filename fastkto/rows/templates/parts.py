"""Content in parts, `[{"type": "text", "text": ...}]`, for templates that read text only."""

from collections.abc import Callable
from typing import Any

from fastkto.rows.shapes.faults import UNRENDERABLE, Unusable

Messages = list[dict[str, Any]]
_TEXTS = ("text", "input_text", "output_text")


def readable(
    prompt: Messages, completion: Messages, render: Callable[[Messages], str], where: str
) -> tuple[Messages, Messages]:
    """The messages with their parts joined to one text where the template that `render`s them does not read parts.

    Errors: `Unusable` for a part that is no text.
    """
    messages = prompt + completion
    places = [i for i, message in enumerate(messages) if isinstance(message.get("content"), list)]
    if not places:
        return prompt, completion
    texts = {i: [_text(part, f"{where}, message {i}") for part in messages[i]["content"]] for i in places}
    read = _read(messages, places, render)
    joined = [
        message if i not in texts or i in read else message | {"content": "".join(texts[i])}
        for i, message in enumerate(messages)
    ]
    return joined[: len(prompt)], joined[len(prompt) :]


def _text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") in _TEXTS and isinstance(part.get("text"), str):
        return part["text"]
    fix = "Remove the row, or its parts that are no text."
    raise Unusable(where, part, "a part {'type': 'text', 'text': ...}", fix, UNRENDERABLE)


def _read(messages: Messages, places: list[int], render: Callable[[Messages], str]) -> set[int]:
    """The messages of `places` whose parts reach the text that the template makes, and not as Python prints them."""
    marks = {i: f"fastkto:part:{i}:" for i in places}
    marked = [
        message | {"content": [{"type": "text", "text": marks[i]}]} if i in marks else message
        for i, message in enumerate(messages)
    ]
    plain = {i for i in places if all(isinstance(p, dict) and p.get("type") == "text" for p in messages[i]["content"])}
    try:
        text = render(marked)
    except Exception:  # whatever a template raises, it does not read parts
        return set()
    return {i for i in plain if marks[i] in text and not any(f"{q}{marks[i]}{q}" in text for q in "'\"")}
