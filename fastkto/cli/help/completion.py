"""`fastkto completion`: what a shell needs to complete commands and options."""

import importlib
from collections.abc import Sequence

from fastkto.cli.help.commands import COMMANDS, module_of
from fastkto.cli.help.shells import SCRIPTS
from fastkto.cli.options.strict import StrictParser

DESCRIPTION = """Print a script for bash, zsh or fish. It holds the names of the options, so that completing starts no
Python; print it again after an update. The first line below goes into .bashrc or .zshrc, the second into
config.fish."""


def run(argv: Sequence[str]) -> int:
    """Print the script."""
    shell = parser().parse_all(argv).shell
    parsers = {name: importlib.import_module(module_of(name)).parser() for name in COMMANDS}
    print(SCRIPTS[shell](parsers), end="")
    return 0


def parser() -> StrictParser:
    """The one argument."""
    found = StrictParser(command="completion", description=DESCRIPTION)
    found.add_argument("shell", metavar="SHELL", choices=tuple(SCRIPTS), help="one of")
    return found
