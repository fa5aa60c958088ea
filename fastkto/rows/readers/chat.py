"""Messages as products write them -> messages as chat templates read them: role, content, and what belongs to both.

Read: {"role", "content"}, ShareGPT's {"from", "value"}, LangChain's {"type", "content"}, {"type", "data"} and
serialised constructors. Names of people, ids and times are not carried over.
"""

from typing import Any

from fastkto.rows.readers.tally import LeftOut

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
}
KEPT = ("tool_calls", "tool_call_id", "reasoning_content", "label")


def is_chat(value: Any) -> bool:
    """Whether `value` is a list of messages in one of the spellings."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]  # LangChain's batch of one
    return isinstance(value, list) and bool(value) and all(_is_message(item) for item in value)


def read_chat(value: list[Any], roles: dict[str, str] | None = None) -> list[Message]:
    """The messages; `roles` are a mapping file's own names, before the usual ones."""
    if len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    return [read_message(message, roles) for message in value]


def read_message(message: Message, roles: dict[str, str] | None = None) -> Message:
    """One message. Raises `LeftOut` for a role that is not known and for content that is not text."""
    name, body = _name_and_body(message)
    role = (ROLES | (roles or {})).get(name.lower().removesuffix("message").removesuffix("messagechunk"))
    if role is None:
        raise LeftOut(f"with a message by {name!r}, a role that is not known")
    content = body.get("content", body.get("value"))
    further = body.get("additional_kwargs")
    calls = body.get("tool_calls") or (further.get("tool_calls") if isinstance(further, dict) else None)
    kept = {key: body[key] for key in KEPT if body.get(key) not in (None, [])}
    if calls and role == "assistant":
        kept["tool_calls"] = calls
    if role == "tool" and body.get("name"):
        kept["name"] = body["name"]
    if content is None and "tool_calls" not in kept:
        raise LeftOut("with a message without content")
    return {"role": role, "content": text_of(content or ""), **kept}


def text_of(content: Any) -> str:
    """Content as text: text as it is, parts of text joined."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if any(not isinstance(text, str) for text in texts):
        raise LeftOut("with a picture, a file or a tool's call in a message")
    return "".join(map(str, texts))


def last_answer(messages: list[Message]) -> Message:
    """What answers the last question: one message, with no tool called on the way."""
    asked = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    answers = messages[asked + 1 :]
    if len(answers) > 1 or any(message.get("tool_calls") for message in answers):
        raise LeftOut("in which the answer calls tools")
    if not answers or answers[0]["role"] != "assistant":
        raise LeftOut("without an answer")
    return answers[0]


def _is_message(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    return item.get("lc") == 1 or any(
        isinstance(item.get(name), str) and body in item
        for name, body in (("role", "content"), ("from", "value"), ("type", "content"), ("type", "data"))
    )


def _name_and_body(message: Message) -> tuple[str, Message]:
    if message.get("lc") == 1:
        path, body = message.get("id"), message.get("kwargs")
        return str(path[-1]) if isinstance(path, list) and path else "", body if isinstance(body, dict) else {}
    if isinstance(message.get("data"), dict):
        return str(message.get("type")), message["data"]
    return str(message.get("role") or message.get("from") or message.get("type")), message
