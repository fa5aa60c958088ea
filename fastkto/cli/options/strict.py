"""A command line that guesses nothing: unknown flags are errors that name the nearest one."""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


class UsageError(Exception):
    """The command line itself is wrong."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean X?`-style ending for an unknown name; empty if nothing is near."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


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
            raise UsageError(
                f"unknown argument {flag!r}{nearest(flag, self._option_string_actions)}. See: {self.prog} --help"
            )
        return known or argparse.Namespace()
