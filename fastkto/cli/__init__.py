"""The command line: `fastkto COMMAND ...`.

A command's module is imported when the command is run.

In: `sys.argv`. Out: text on stdout, errors on stderr, and the exit code (`main`).

    commands/  each command's module
    failures   which exceptions become one line for the user, and which are bugs that keep their traceback
    options/   flags, YAML, and the models, data and adapters that they name

A command is a module in `cli/commands/` with `run(argv)`, and an entry in `COMMANDS`. A setting of the training is a
field of `config.py`: its flag follows from that.
"""

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from fastkto import __version__
from fastkto.cli.failures import explain
from fastkto.cli.options.strict import UsageError, nearest
from fastkto.errors import escaped

COMMANDS = {
    "init": "look at a file of feedback and a model, and write the YAML that trains it",
    "train": "train a model from a YAML file, flags, or both",
    "chat": "talk to a trained model, its base answering beside it",
    "data": "show what a data file would train on; trains nothing",
    "plan": "the memory that a training step needs, by part, and the longest rows that fit",
    "bench": "time and memory of a training step, beside TRL's and plain fine-tuning",
    "doctor": "versions, devices, backends, and a check against the oracle",
    "merge": "merge an adapter into its base model",
    "report": "draw a run's metrics as report.png",
}

HELP = f"""usage: fastkto COMMAND ...

KTO training on thumbs-up / thumbs-down feedback.

commands:
{"".join(f"  {name:<8} {summary}{chr(10)}" for name, summary in COMMANDS.items())}
options:
  -h, --help     this text; `fastkto COMMAND --help` shows a command's options
  --version      the version

example:
  fastkto train config.yaml --learning_rate 5e-7"""


class OneLine(logging.Formatter):
    """A warning as one line, in which a file's text cannot speak to the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message without what a terminal would obey."""
        return escaped(super().formatMessage(record))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 1 for input that cannot be used, 2 for a wrong command line.

    What the user can mend is one message on stderr. A bug keeps its traceback, and FASTKTO_DEBUG=1 shows every one.
    """
    command, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "--version"):
        print(f"fastkto {__version__}" if command == "--version" else HELP)
        return 0
    if command not in COMMANDS:
        print(f"fastkto: unknown command {command!r}{nearest(command, COMMANDS)}. See: fastkto --help", file=sys.stderr)
        return 2
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(OneLine())
    try:
        return importlib.import_module(f"fastkto.cli.commands.{command}").run(rest)
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
