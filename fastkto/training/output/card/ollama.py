"""A tokenizer's chat template as Ollama's Modelfile has it: its own language, so that it is found out by rendering."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from fastkto.errors import escaped

S, U, A, V, B = "fastkto@system", "fastkto@user", "fastkto@answer", "fastkto@again", "fastkto@other"
PLAIN = 'TEMPLATE """{{ .Prompt }}"""'
UNKNOWN = (
    "# Ollama has to know this chat template: `ollama create` must say `using autodetected template`,\n"
    "# else write TEMPLATE here"
)
Render = Callable[..., str]


class Pieces(NamedTuple):
    """What stands before and after each kind of message."""

    head: str
    system: tuple[str, str] | None
    """None where the template refuses one."""
    user: tuple[str, str]
    answer: tuple[str, str]
    opening: str
    """Of the answer that is asked for."""
    default_system: str | None


def modelfile(tokenizer: Any) -> str:
    """The lines of a Modelfile below FROM: TEMPLATE, SYSTEM where the template has a default, and where to stop."""
    if not tokenizer.chat_template:
        return PLAIN
    bos = tokenizer.bos_token or ""
    pieces = pieces_of(lambda given, **more: str(tokenizer.apply_chat_template(given, tokenize=False, **more)), bos)
    if pieces is None or pieces.default_system == "" or any(part in str(pieces) for part in ("{{", '"""')):
        return UNKNOWN
    head = pieces.head.removeprefix(bos)  # which Ollama puts there by itself
    roles = {"system": pieces.system, "user": pieces.user, "assistant": pieces.answer}
    cases = [
        f'if eq .Role "{role}" }}}}{around[0]}{{{{ .Content }}}}{around[1]}{{{{ '
        for role, around in roles.items()
        if around is not None
    ]
    body = "{{ range .Messages }}{{ " + "else ".join(cases) + "end }}{{ end }}"
    lines = [f'TEMPLATE """{head}{body}{pieces.opening}"""']
    if pieces.default_system:
        lines.append(f'SYSTEM """{pieces.default_system}"""')
    if end := pieces.answer[1].strip().partition("\n")[0]:
        lines.append(f'PARAMETER stop "{escaped(end)}"')
    return "\n".join(lines)


def pieces_of(render: Render, bos: str = "") -> Pieces | None:
    """The parts of a template that puts each message between two fixed texts; None for one that does more."""

    def said(*texts: str, **more: Any) -> str:
        roles = {S: "system", U: "user", V: "user", A: "assistant", B: "assistant"}
        return render([{"role": roles[text], "content": text} for text in texts], **more)

    try:
        before_user, after_user = _around(said(U), U)
        after_answer = _around(said(U, A), A)[1]
        before_again = _between(said(U, A, V), A, V).removeprefix(after_answer)
        before_answer = _between(said(U, A), U, A).removeprefix(after_user)
        opening = said(U, add_generation_prompt=True).rpartition(U)[2].removeprefix(after_user)
        head, system, default = before_user.removesuffix(before_again), None, None
        try:
            before_system = _around(said(S, U), S)[0]
            after_system = _between(said(S, U), S, U).removesuffix(before_again)
        except TemplateError:
            pass
        else:
            if head.startswith(before_system) and head.endswith(after_system) and head != before_system:
                default = head[len(before_system) : len(head) - len(after_system)]
                head = bos if before_system.startswith(bos) and not before_again.startswith(bos) else ""
            system = before_system.removeprefix(head), after_system
    except (TemplateError, ValueError):
        return None
    user, answer = (before_again, after_user), (before_answer, after_answer)
    found = Pieces(head, system, user, answer, opening, default)
    try:
        right = all(
            said(*texts, add_generation_prompt=True) == _assembled(found, texts)
            for texts in ((U,), (U, A, V, B, U), *(((S, U), (S, U, A, V)) if system else ()))
        )
    except TemplateError:
        return None
    return found if right else None


def _assembled(pieces: Pieces, texts: Sequence[str]) -> str:
    around = {S: pieces.system, U: pieces.user, V: pieces.user, A: pieces.answer, B: pieces.answer}
    if pieces.default_system is not None and S not in texts and pieces.system:
        start = pieces.system[0] + pieces.default_system + pieces.system[1]
    else:
        start = ""
    parts = [(around[text] or ("", "")) for text in texts]
    middle = "".join(before + text + after for text, (before, after) in zip(texts, parts, strict=True))
    return pieces.head + start + middle + pieces.opening


def _around(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.partition(mark)
    if not found or mark in after:
        raise ValueError(f"{mark} is not there once")
    return before, after


def _between(text: str, first: str, second: str) -> str:
    return _around(_around(text, first)[1], second)[0]
