"""A command line that guesses nothing: unknown names are errors that name the nearest known ones."""

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from fastkto.cli.help.commands import COMMANDS
from fastkto.cli.help.declared import options_of_accelerate
from fastkto.cli.help.page import Groups, flag_of, page

SECOND_SPELLING = re.compile(r"(?<=\w)/--[\w-]+")


class UsageError(Exception):
    """The command line itself is wrong."""


INSTEAD = {
    "lr": "Set learning_rate instead.",
    "mixed_precision": "Set bf16 or fp16 instead.",
    "dynamo_backend": "Set torch_compile and torch_compile_backend instead.",
}
"""What others call a field of the trainer: people, and `accelerate launch`, whose options `trl kto` hands on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X or Y?` for an unknown name: those spelt alike, else those with a word that begins so."""
    word, names = name.lstrip("-"), {one.lstrip("-"): one for one in known}
    alike = difflib.get_close_matches(word, names, n=3, cutoff=0.8)
    scores = {one: difflib.SequenceMatcher(None, one, word).ratio() for one in alike}
    near = [one for one in alike if scores[one] > scores[alike[0]] - 0.1]
    near = near or [one for one in names if len(word) > 2 and f"_{word}" in f"_{one}"][:3]
    near = near or difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {' or '.join(repr(names[one]) for one in near)}?" if near else ""


def elsewhere(name: str) -> str:
    """What to do about an option of `accelerate launch` that is none here, as a sentence; empty for other names."""
    if name in INSTEAD:
        return INSTEAD[name]
    if name in options_of_accelerate():
        return "It is one of accelerate's: write it into the file that accelerate_config names."
    return ""


class StrictParser(argparse.ArgumentParser):
    """Raises `UsageError` instead of exiting; no abbreviations, and an unknown flag is told its nearest names."""

    def __init__(self, *, command: str | None = None, groups: Groups | None = None, **kwargs: Any) -> None:
        self.groups, self.examples = groups, COMMANDS[command].examples if command else ()
        about = {"prog": f"fastkto {command}", "usage": COMMANDS[command].usage} if command else {}
        super().__init__(**{**about, "allow_abbrev": False, **kwargs, "add_help": False})
        if kwargs.get("add_help", True):
            self.add_argument("-h", "--help", action="help", help="this text")

    def format_help(self) -> str:
        """The page for the width of the terminal."""
        return page(self, self.groups, self.examples)

    def error(self, message: str) -> NoReturn:
        """What argparse calls when it cannot go on."""
        raise UsageError(f"{SECOND_SPELLING.sub('', message)}. See: {self.prog} --help")

    def parse_all(self, argv: Sequence[str], namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        """`parse_args` that names what it does not know, and that before what is missing."""
        for flag in (text.partition("=")[0] for text in takewhile(lambda text: text != "--", argv) if " " not in text):
            if flag.startswith("--") and flag not in self._option_string_actions:
                self._refuse(flag)
        known, rest = self.parse_known_args(argv, namespace)
        if rest:
            self._refuse(next((text for text in rest if text.startswith("-")), rest[0]))
        return known or argparse.Namespace()

    def _refuse(self, text: str) -> NoReturn:
        name = text.lstrip("-").replace("-", "_")
        flags = [flag_of(action) for action in self._actions if action.option_strings]
        alike = [flag for flag in flags if flag.startswith("--no_") == name.startswith("no_")]
        hint = elsewhere(name)
        hint = f". {hint}" if hint else nearest(f"--{name}", alike) or "."
        raise UsageError(f"unknown argument {text!r}{hint} See: {self.prog} --help")
