"""Errors a user can act on: what was given, what was expected, what to do."""

import importlib
from types import ModuleType


class InputError(ValueError):
    """A value from outside is unusable: names the argument, its value, what was expected and the fix."""

    def __init__(self, argument: str, value: object, expected: str, fix: str) -> None:
        self.argument, self.value, self.expected, self.fix = argument, value, expected, fix
        super().__init__(f"{argument}: got {_short(value)}, expected {expected}. {fix}")

    def __reduce__(self) -> tuple[type, tuple[str, object, str, str]]:
        """Survive the trip from a worker process."""
        return type(self), (self.argument, self.value, self.expected, self.fix)


class InputTypeError(InputError, TypeError):
    """The same of another type than the argument takes."""


class MissingExtra(ImportError):
    """An optional package is absent: names it and the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed. Run: pip install 'fastkto[{extra}]'"
        )


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


def _short(value: object, limit: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
