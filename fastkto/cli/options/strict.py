"""A command line that guesses nothing: unknown flags are errors that name the nearest one."""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


class UsageError(Exception):
    """The command line itself is wrong."""


INSTEAD = {
    "mixed_precision": "Set bf16 or fp16 instead.",
    "dynamo_backend": "Set torch_compile and torch_compile_backend instead.",
}
"""Of the options of `accelerate launch`, which `trl kto` hands on, those that are fields of the trainer."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean X?`-style ending for an unknown name; empty if nothing is near."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def elsewhere(name: str) -> str:
    """What to do about an option of `accelerate launch` that is none here, as a sentence; empty for other names."""
    if name in INSTEAD:
        return INSTEAD[name]
    from accelerate.commands.launch import launch_command_parser

    if name in {action.dest for action in launch_command_parser()._actions}:
        return "It is one of accelerate's: write it into the file that accelerate_config names."
    return ""


class StrictParser(argparse.ArgumentParser):
    """Raises `UsageError` instead of exiting; no abbreviations, and an unknown flag is told its nearest name."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.ArgumentDefaultsHelpFormatter, **kwargs})

    def error(self, message: str) -> NoReturn:
        """What argparse calls when it cannot go on."""
        raise UsageError(f"{message}. See: {self.prog} --help")

    def parse_all(self, argv: Sequence[str], namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        """`parse_args` that names what it does not know."""
        known, rest = self.parse_known_args(argv, namespace)
        if rest:
            flag = next((text for text in rest if text.startswith("-")), rest[0]).partition("=")[0]
            hint = elsewhere(flag.lstrip("-").replace("-", "_"))
            hint = f". {hint}" if hint else nearest(flag, self._option_string_actions) or "."
            raise UsageError(f"unknown argument {flag!r}{hint} See: {self.prog} --help")
        return known or argparse.Namespace()
