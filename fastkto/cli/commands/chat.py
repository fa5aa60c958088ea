"""`fastkto chat`: talk to a trained model, its base answering beside it."""

import argparse
import contextlib
import sys
from collections.abc import Sequence

from fastkto.cli.options.strict import StrictParser
from fastkto.errors import escaped
from fastkto.ranges import COUNT

DESCRIPTION = """Talk to what a training wrote, an adapter or a whole model, through the chat template that it was
trained with; its base answers beside it. Of a run that has not ended the newest checkpoint answers. Prompts that are
typed make a conversation; from a pipe every line is a prompt of its own."""


def run(argv: Sequence[str]) -> int:
    """Load the models, then answer until the prompts end."""
    given = parser().parse_all(argv)
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    from transformers.utils import logging

    from fastkto.tools.chat.finding import find
    from fastkto.tools.chat.talking import HOW, lines, talk
    from fastkto.tools.chat.voices import load_voices

    logging.disable_progress_bar()
    found = find(given.out)
    voices, alone = load_voices(
        found,
        base=given.model,
        beside=given.beside,
        alone=given.alone,
        system=given.system,
        plain=found.plain or given.plain,
        trust_remote_code=given.trust_remote_code,
    )
    for line in filter(None, (found.said, alone)):
        print(escaped(line), file=sys.stderr)
    if typed := sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  history and editing of what is typed
        how = "" if voices[0].templated else "Its training had no chat template: prompts go to it as they are. "
        beside = ", its base beside it" if len(voices) > 1 else ""
        print(f"Talking to {escaped(str(found.folder))}{beside}. {how}{HOW}")
    with contextlib.suppress(KeyboardInterrupt):
        talk(
            voices,
            lines(sys.stdin, typed),
            sys.stdout,
            typed=typed,
            max_new_tokens=given.max_new_tokens,
            temperature=given.temperature,
        )
    if typed:
        print()
    return 0


def parser() -> StrictParser:
    """The options."""
    found = StrictParser(command="chat", description=DESCRIPTION)
    found.add_argument("out", metavar="OUT", help="the output_dir of a training, or a checkpoint in it")
    found.add_argument("--with", dest="beside", metavar="BASE", help="folder or Hub id of the model that answers too")
    found.add_argument("--alone", action="store_true", help="only the trained model answers")
    found.add_argument("--model", help="of an adapter, where its base model is; unset: the one that it names")
    found.add_argument("--system", help="a system prompt")
    found.add_argument("--plain", action="store_true", help="no chat template, as of a training on plain text")
    found.add_argument("--max_new_tokens", "--max-new-tokens", type=_count, default=512, help="length of an answer")
    found.add_argument("--temperature", type=_temperature, default=0.0, help="0: always the likeliest token")
    found.add_argument("--trust_remote_code", "--trust-remote-code", action="store_true", help="run the model's code")
    return found


def _count(text: str) -> int:
    if not (text.isdecimal() and COUNT.holds(int(text))):
        raise argparse.ArgumentTypeError(f"{text!r} is not {COUNT}")
    return int(text)


def _temperature(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 100; write e.g. 0.7")
    return number
