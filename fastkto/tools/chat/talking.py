"""A conversation on the terminal: a prompt, and the answer of each voice."""

from collections.abc import Iterable, Sequence
from typing import TextIO

from fastkto.errors import InputError, escaped
from fastkto.tools.chat.voices import Voice

RESET, END = "/reset", ("/exit", "/quit")
HOW = f"Write a prompt. {RESET} starts over, Ctrl-D ends."


def talk(
    voices: Sequence[Voice],
    prompts: Iterable[str],
    out: TextIO,
    *,
    typed: bool,
    max_new_tokens: int,
    temperature: float,
) -> None:
    """Answer each prompt. Typed ones are one conversation; from a pipe each line is one of its own, shown before it."""

    def write(text: str) -> None:
        out.write(safe(text))
        out.flush()

    for prompt in prompts:
        words = prompt.strip()
        if words in END:
            return
        if words == RESET or not typed:
            for voice in voices:
                voice.reset()
        if not words or words == RESET:
            continue
        if not typed:
            write(f"> {words}\n")
        for voice in voices:
            write(f"{voice.name}: ")
            try:
                voice.answer(words, write, max_new_tokens=max_new_tokens, temperature=temperature)
            except InputError as error:
                if not typed:
                    raise
                write(str(error))
            write("\n")
        write("\n")


def lines(stream: TextIO, typed: bool) -> Iterable[str]:
    """The prompts as they are typed, or the lines of a pipe."""
    if not typed:
        yield from stream
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def safe(text: str) -> str:
    """What a terminal only shows, in the lines that it has."""
    return "\n".join("\t".join(map(escaped, line.split("\t"))) for line in text.split("\n"))
