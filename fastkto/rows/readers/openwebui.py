"""Open WebUI's feedback export: an array of feedbacks, each with a snapshot of the chat at the time of the thumb.

The snapshot holds every branch and what was said later. The rated message is the one that `meta.message_id` names, and
its conversation the chain of its parents; nothing else of the snapshot is part of the row.
"""

import html
import re
from collections.abc import Iterable, Iterator
from typing import Any

from fastkto.rows.readers.chat import text_of
from fastkto.rows.readers.mapping import MISSING, find
from fastkto.rows.readers.tally import LeftOut, Numbered, Record, Tally, one_by_one

KEYS = ("data", "meta", "snapshot")
_OPENING = re.compile(r'<details\b[^>]*\btype="(\w+)"[^>]*>')
_CLOSING = "</details>"
_SUMMARY = re.compile(r"\s*<summary>.*?</summary>", re.S)
_QUOTED = re.compile(r"^> ?", re.M)


def fits(record: Record) -> bool:
    """Whether a record is a feedback of Open WebUI."""
    return all(key in record for key in KEYS)


def read(records: Iterable[Record], tally: Tally) -> Iterator[Numbered]:
    """The thumbs with their conversations, as prompt, completion and label; `source` is the model that answered."""
    return one_by_one(records, _row, tally)


def _row(record: Record) -> Record:
    if _get(record, "meta.arena") in (True, "true", "True", 1):
        raise LeftOut("arena comparisons of models, which are no thumbs")
    label = _thumb(_get(record, "data.rating"))
    chat = _get(record, "snapshot.chat.chat")
    if not isinstance(chat, dict):
        raise LeftOut("without a snapshot of the chat")
    *prompt, answer = _chain(chat, _get(record, "meta.message_id"))
    if answer["role"] != "assistant":
        raise LeftOut("whose rated message is not an answer")
    if not any(message["role"] == "user" for message in prompt):
        raise LeftOut("without a question before the answer")
    if not answer["content"]:
        raise LeftOut("with an empty answer")
    system = _get(chat, "params.system") or _get(chat, "system")
    if isinstance(system, str) and system.strip():
        prompt.insert(0, {"role": "system", "content": system})
    model = _get(record, "data.model_id") or ""
    return {"prompt": prompt, "completion": [answer], "label": label, "source": str(model)}


def _thumb(rating: Any) -> bool:
    if rating in (None, ""):
        raise LeftOut("not rated")
    try:
        value = float(str(rating))
    except ValueError:
        value = float("nan")
    if value == 0:
        raise LeftOut("rated 0, neither up nor down")
    if value not in (1, -1):
        raise LeftOut(f"with the rating {rating!r}, which is not 1, 0 or -1")
    return value == 1


def _chain(chat: Record, rated: Any) -> list[Record]:
    """The messages from the first to the rated one."""
    messages = _get(chat, "history.messages")
    if isinstance(messages, list):
        messages = {message["id"]: message for message in messages if isinstance(find(message, "id"), str)}
    if not isinstance(messages, dict) or not isinstance(rated, str) or not isinstance(messages.get(rated), dict):
        raise LeftOut("whose rated message is not in the snapshot")
    chain: list[Record] = []
    seen: set[str] = set()
    key: Any = rated
    while key is not None:
        if not isinstance(key, str) or not isinstance(messages.get(key), dict) or key in seen:
            raise LeftOut("with a gap in the conversation: a message's parent is not in the snapshot")
        seen.add(key)
        chain.append(_message(messages[key]))
        key = messages[key].get("parentId")
    return chain[::-1]


def _message(message: Record) -> Record:
    role = message.get("role")
    if role not in ("system", "user", "assistant"):
        raise LeftOut(f"with a message by {role!r}, a role that is not known")
    files = message.get("files")
    if isinstance(files, list) and any(find(file, "type") == "image" for file in files):
        raise LeftOut("with a picture in the conversation")
    content = text_of(message.get("content") or "")
    return {"role": role, "content": content} if role != "assistant" else _answer(content)


def _answer(content: str) -> Record:
    """An answer, with what it shows as folded blocks of reasoning as its reasoning."""
    thoughts, rest, at = [], [], 0
    while opening := _OPENING.search(content, at):
        if opening[1] != "reasoning":
            raise LeftOut("with a tool's call or its result in the conversation")
        rest.append(content[at : opening.start()])
        end = _end(content, opening.end())
        thoughts.append(_unquoted(_SUMMARY.sub("", content[opening.end() : end], count=1).strip()))
        at = end + len(_CLOSING)
    if not thoughts:
        return {"role": "assistant", "content": content}
    reasoning = "\n\n".join(thought for thought in thoughts if thought)
    return {
        "role": "assistant",
        "content": "".join([*rest, content[at:]]).strip(),
        "reasoning_content": reasoning,
    }


def _end(content: str, start: int) -> int:
    """Where a block closes: at the first closing tag outside its quotation, or with the text if it was cut off."""
    at = first = content.find(_CLOSING, start)
    while at >= 0 and content[content.rfind("\n", 0, at) + 1 : at].startswith((">", "&gt;")):
        at = content.find(_CLOSING, at + 1)
    return next((place for place in (at, first) if place >= 0), len(content))


def _unquoted(body: str) -> str:
    """Reasoning as the model wrote it: it is shown as a quotation, in newer versions with its characters escaped."""
    if body.startswith("&gt;"):
        body = html.unescape(body)
    return _QUOTED.sub("", body).strip()


def _get(value: Any, path: str) -> Any:
    found = find(value, path)
    return None if found is MISSING else found
