"""Errors a user can act on: what was given, what was expected, what to do."""

import contextlib
import importlib
import re
from collections.abc import Iterator, Mapping
from types import ModuleType

_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """A value from outside is unusable: names the argument, its value, what was expected and the fix."""

    def __init__(self, argument: str, value: object, expected: str, fix: str) -> None:
        self.argument, self.value, self.expected, self.fix = argument, value, expected, fix
        super().__init__(escaped(f"{argument}: got {_short(value)}, expected {expected}. {fix}"))

    def __reduce__(self) -> tuple[type, tuple[str, object, str, str]]:
        """Survive the trip from a worker process."""
        return type(self), (self.argument, self.value, self.expected, self.fix)


class InputTypeError(InputError, TypeError):
    """The same of another type than the argument takes."""


class MissingExtra(ImportError):
    """An optional package is absent: names it and the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        from fastkto.installation import add_command  # what it imports would slow every start

        command = add_command(extra, package)
        super().__init__(f"this needs the package {package!r}, which is not installed. Run: {command}")


class ProcessFailed(RuntimeError):
    """Another process ended, or answered what it should not have: its name and its last words."""


def require(package: str, extra: str) -> ModuleType:
    """Import an optional package, or raise `MissingExtra` with the command that installs it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package.partition(".")[0]:
            raise
        raise MissingExtra(package, extra) from error


@contextlib.contextmanager
def keywords_of(argument: str, given: object) -> Iterator[None]:
    """Turn what Python raises for one of a user's keywords that nobody takes into an `InputError`."""
    try:
        yield
    except TypeError as error:
        found = re.search(r"keyword argument '(\w+)'", str(error))
        if found is None or not isinstance(given, Mapping | str) or found[1] not in given:
            raise
        raise InputError(argument, found[1], "a keyword that is known", f"Python says: {error}. Remove it.") from error


def escaped(text: str) -> str:
    r"""A user's text as one line that a terminal only shows: a control character is written as in Python, `\x1b`."""
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)


def _short(value: object, limit: int = 200) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deeply to show"
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
