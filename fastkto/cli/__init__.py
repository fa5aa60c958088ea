"""The command line: `fastkto COMMAND ...`.

A command's module is imported when the command is run, and what it works with once its options have been read: help
and wrong names cost neither torch nor transformers.

In: `sys.argv`. Out: text on stdout, errors on stderr, and the exit code (`main`).

    commands/  each command's module
    failures   which exceptions become one line for the user, and which are bugs that keep their traceback
    help/      what the commands are called, pages of help, completion
    options/   flags, YAML, and the models, data and adapters that they name

A command is a module in `cli/commands/` with `run(argv)` and `parser()`, and an entry in `cli/help/commands`. A setting
of the training is a field of `config.py`: its flag follows from that.
"""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

import fastkto
from fastkto.cli.failures import explain
from fastkto.cli.help.commands import COMMANDS, module_of
from fastkto.cli.help.page import overview, reminder
from fastkto.cli.options.strict import UsageError, nearest
from fastkto.errors import escaped


class OneLine(logging.Formatter):
    """A warning as one line, in which a file's text cannot speak to the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message without what a terminal would obey."""
        return escaped(super().formatMessage(record))


def silence_others() -> None:
    """What other libraries say to their own users, not to ours, and bars where no one sees them move."""
    if not sys.warnoptions and os.environ.get("FASTKTO_DEBUG") != "1":
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no accelerator")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for each layer of each step
    if not sys.stderr.isatty():
        for library in ("HF_HUB", "HF_DATASETS"):  # transformers follows the first
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 1 for input that cannot be used, 2 for a wrong command line or none.

    What the user can mend is one message on stderr. A bug keeps its traceback, and FASTKTO_DEBUG=1 shows every one.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if not given:
        print(overview(), file=sys.stderr)
        return 2
    command, *rest = [*given[1:2], "--help"] if given[0] == "help" else given
    if command in ("-h", "--help", "--version"):
        print(f"fastkto {fastkto.__version__}" if command == "--version" else overview())
        return 0
    if command not in COMMANDS:
        near = nearest(command, [*COMMANDS, f"train {command}"] if command.endswith((".yaml", ".yml")) else COMMANDS)
        near = near or "."
        print(escaped(f"fastkto: unknown command {command!r}{near} See: fastkto --help"), file=sys.stderr)
        return 2
    if not rest and not COMMANDS[command].alone:
        print(reminder(command), file=sys.stderr)
        return 2
    silence_others()
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(OneLine())
    try:
        return importlib.import_module(module_of(command)).run(rest)
    except SystemExit as stop:  # argparse, after it has printed --help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        if os.environ.get("FASTKTO_DEBUG") == "1":
            raise
        print(f"fastkto {command}: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get("FASTKTO_DEBUG") == "1":
            raise
        print(f"fastkto {command}: {message}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
