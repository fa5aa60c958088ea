"""`make templates`: 16 conversations under every chat template that TRL ships, through our reader and stock's ids."""

import functools
import json
import sys
import tempfile
from pathlib import Path

from stock import answer, call, chat_ids, template, user
from tiny import tiny_tokenizer

from fastkto.errors import InputError
from fastkto.rows import normalise, read_rows
from fastkto.rows.tokens import tokenize_row

SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}
    for name, parameters in {
        "book": {"type": "object", "properties": {"city": {"type": "string", "default": None}}, "required": ["city"]},
        "stop": {"type": "object", "properties": {"zone": {"type": ["integer", "null"], "enum": [1, None]}}},
    }.items()
]


def said(text, name="book"):
    return {"role": "tool", "name": name, "tool_call_id": "123456789", "content": text}


def calls(*arguments):
    return [each | {"id": f"12345678{i}"} for i, a in enumerate(arguments) for each in call(a)]


CONVERSATIONS = {
    "one turn": ([user("q")], [answer("a")], {}),
    "system": ([SYSTEM, user("q")], [answer("a")], {}),
    "many turns": ([user("q"), answer("a"), user("r")], [answer("b")], {}),
    "a call": ([user("q")], [answer("", tool_calls=calls({"city": "Rome"}))], {"tools": TOOLS}),
    "a null in a call": ([user("q")], [answer("", tool_calls=calls({"city": None, "n": 1}))], {"tools": TOOLS}),
    "arguments as text": ([user("q")], [answer("", tool_calls=calls('{"city": "Rome"}'))], {"tools": TOOLS}),
    "no content": ([user("q")], [answer(None, tool_calls=calls({"city": "Rome"}))], {"tools": TOOLS}),
    "a tool's reply": (
        [SYSTEM, user("q"), answer("", tool_calls=calls({"city": "Rome"})), said('{"ok": null}')],
        [answer("booked")],
        {"tools": TOOLS},
    ),
    "two calls": (
        [
            user("q"),
            answer("I look.", tool_calls=calls({"city": "Rome"}, {"city": "Oslo", "days": [1, 2.5]})),
            *(said("yes"), said("no")),
        ],
        [answer("Rome")],
        {"tools": TOOLS[:1]},
    ),
    "reasoning": ([user("q")], [answer("a", reasoning_content="hm\nhm")], {}),
    "reasoning alone": ([user("q")], [answer("", reasoning_content="hm")], {}),
    "names": ([user("q", name="kim")], [answer("a", name="max")], {}),
    "signs": ([user("\U0001f600 caf\xe9 \u4f60")], [answer("\u0627\u0644 <b>&amp;</b>\0")], {}),
    "an empty answer": ([user("q")], [answer("")], {}),
    "white space": ([user("  q\n\n")], [answer("\n a \t\n<|end|>")], {}),
    "not thinking": (
        [SYSTEM, user("2010-01-03")],
        [answer("00007")],
        {"chat_template_kwargs": {"enable_thinking": False}},
    ),
}


def template_names():
    import trl

    return sorted(path.stem for path in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


@functools.cache
def rows():
    """The conversations as they come out of a file, by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        lines = [{"prompt": p, "completion": c, "label": True, **more} for p, c, more in CONVERSATIONS.values()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return dict(zip(CONVERSATIONS, normalise(read_rows(path, streaming=True)), strict=True))


def compare(name):
    """The conversations whose ids are not stock's under a template, and how many are equal, and refused by both."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template(name)
    unlike, equal, refused = [], 0, 0
    for title, (prompt, completion, more) in CONVERSATIONS.items():
        arguments = {"tools": more.get("tools"), **more.get("chat_template_kwargs", {})}
        try:
            right = chat_ids(tokenizer, prompt, completion, **arguments)
        except Exception as error:  # whatever the template raises
            right = type(error).__name__
        try:
            found = tokenize_row(rows()[title], tokenizer)
        except InputError:
            found = None
        if isinstance(right, str) and found is None:
            refused += 1
        elif found == right:
            equal += 1
        else:
            unlike.append(title)
    return unlike, equal, refused


def main():
    names, wrong, total = template_names(), 0, [0, 0]
    for name in names:
        unlike, equal, refused = compare(name)
        wrong += len(unlike)
        total = [total[0] + equal, total[1] + refused]
        print(f"{name:<36} {equal:>3} equal {refused:>3} refused by both  {', '.join(unlike)}")
    print(f"{len(names)} templates: {total[0]} equal, {total[1]} refused by both, {wrong} unlike")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
