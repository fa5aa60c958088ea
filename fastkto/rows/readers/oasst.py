"""OASST (OpenAssistant): messages with a parent each, answers ranked among their siblings, 0 the best.

The rule: under every question that has at least two ranked answers, the best is desirable and the worst is not; those
between are left out. (The paper's authors pair neighbours for losses on pairs; without pairs that would put every
answer in between under both labels, which cancel.)
"""

from collections.abc import Iterable, Iterator

from fastkto.rows.readers.mapping import pair
from fastkto.rows.readers.tally import LeftOut, Numbered, Record, Tally

_ROLES = {"prompter": "user", "assistant": "assistant"}


def fits(record: Record) -> bool:
    """Whether a record is a message, or a whole tree of them."""
    return "message_tree_id" in record and ({"message_id", "parent_id", "text"} <= {*record} or "prompt" in record)


def read(records: Iterable[Record], tally: Tally) -> Iterator[Numbered]:
    """Pairs: prompt, chosen and rejected as messages; `source` is the language."""
    messages: dict[str, Record] = {}
    answers: dict[str, list[tuple[int, Record]]] = {}
    for number, record in enumerate(records):
        for message in _messages(record):
            if not isinstance(message["message_id"], str):
                tally.add("messages without an id", number)
                continue
            messages[message["message_id"]] = message
            if message.get("role") == "assistant":
                if message.get("deleted"):
                    tally.add("answers that are deleted", number)
                elif not isinstance(message.get("rank"), int | float):
                    tally.add("answers without a rank", number)
                else:
                    answers.setdefault(str(message.get("parent_id") or ""), []).append((number, message))
    for parent, siblings in answers.items():
        siblings.sort(key=lambda sibling: sibling[1]["rank"])
        (first, best), *between = siblings
        if not between or between[-1][1]["rank"] == best["rank"]:
            for number, _ in siblings:
                tally.add("answers with no other of another rank", number)
            continue
        *between, (_, worst) = between
        for number, _ in between:
            tally.add("answers ranked between the best and the worst", number)
        try:
            sides = ([_turn(answer)] for answer in (best, worst))
            yield first, pair(_conversation(messages, parent), *sides) | {"source": str(best.get("lang") or "")}
        except LeftOut as reason:
            tally.add(f"pairs of answers {reason}", first)


def _messages(record: Record) -> Iterator[Record]:
    """A message by itself, or every one of a tree, each with its parent."""
    if "message_id" in record and "parent_id" in record:
        yield record
        return
    waiting = [(record.get("prompt"), None)]
    while waiting:
        message, parent = waiting.pop()
        if isinstance(message, dict) and "message_id" in message:
            yield message | {"parent_id": parent}
            waiting += [(reply, message["message_id"]) for reply in reversed(message.get("replies") or [])]


def _conversation(messages: dict[str, Record], last: str) -> list[Record]:
    turns: list[Record] = []
    seen: set[str] = set()
    key: str | None = last
    while key:
        message = messages.get(key) if isinstance(key, str) else None
        if message is None or key in seen:
            raise LeftOut("with a gap in the conversation: a message's parent is not in the file")
        if message.get("deleted"):
            raise LeftOut("with a deleted message in the conversation")
        seen.add(key)
        turns.append(_turn(message))
        key = message.get("parent_id")
    if not turns:
        raise LeftOut("without a question")
    return turns[::-1]


def _turn(message: Record) -> Record:
    role, text = message.get("role"), message.get("text")
    if role not in ("prompter", "assistant"):
        raise LeftOut(f"with a message by {role!r}, a role that is not known")
    if not isinstance(text, str):
        raise LeftOut("with a message without text")
    return {"role": _ROLES[role], "content": text}
