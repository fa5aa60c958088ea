"""Bad inputs, each as a user would give it to the command line: a folder, one thing broken in it, and the command."""

from collections.abc import Callable

from faults.folder import settings

Case = Callable[[], list[str]]
CASES: dict[str, dict[str, Case]] = {}


def case(kind: str, name: str) -> Callable[[Case], Case]:
    """Adds a function that breaks something in the working directory and returns the command."""

    def add(function: Case) -> Case:
        assert name not in CASES.setdefault(kind, {})
        CASES[kind][name] = function
        return function

    return add


def train(**changes: object) -> list[str]:
    """`fastkto train config.yaml`, with some lines of the file changed."""
    settings(**changes)
    return ["train", "config.yaml"]


def plain(kind: str, name: str, **changes: object) -> None:
    """A case that is a line of the config file."""
    case(kind, name)(lambda: train(**changes))
