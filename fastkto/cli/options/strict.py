"""A command line that guesses nothing: unknown names are errors that name the nearest known ones."""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from fastkto.cli.help.commands import COMMANDS
from fastkto.cli.help.declared import options_of_accelerate
from fastkto.cli.help.page import Groups, name_of, page


class UsageError(Exception):
    """The command line itself is wrong."""


INSTEAD = {
    "mixed_precision": "Set bf16 or fp16 instead.",
    "dynamo_backend": "Set torch_compile and torch_compile_backend instead.",
}
"""Of the options of `accelerate launch`, which `trl kto` hands on, those that are fields of the trainer."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X or Y?` for an unknown name: those spelt like it, else those that it is a part of."""
    names = list(dict.fromkeys(known))
    alike = difflib.get_close_matches(name, names, n=3)
    scores = {match: difflib.SequenceMatcher(None, match, name).ratio() for match in alike}
    near = [match for match in alike if scores[match] > scores[alike[0]] - 0.1]
    near = near or [one for one in names if len(name.strip("-")) > 2 and name.strip("-") in one][:3]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


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
        raise UsageError(f"{message}. See: {self.prog} --help")

    def parse_all(self, argv: Sequence[str], namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        """`parse_args` that names what it does not know."""
        known, rest = self.parse_known_args(argv, namespace)
        if rest:
            flag = next((text for text in rest if text.startswith("-")), rest[0]).partition("=")[0]
            name = flag.lstrip("-").replace("-", "_")
            hint = elsewhere(name)
            known_names = [f"--{one}" for one in self.names() if one.startswith("no_") == name.startswith("no_")]
            hint = f". {hint}" if hint else nearest(f"--{name}", known_names) or "."
            raise UsageError(f"unknown argument {flag!r}{hint} See: {self.prog} --help")
        return known or argparse.Namespace()

    def names(self) -> list[str]:
        """Of every option in its first spelling."""
        return [name_of(action) for action in self._actions if action.option_strings]
