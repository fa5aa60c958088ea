"""`fastkto report`: a run's metrics as one picture."""

from collections.abc import Sequence
from pathlib import Path

from fastkto.cli.options.strict import StrictParser
from fastkto.errors import escaped


def run(argv: Sequence[str]) -> int:
    """Draw `report.png` in the run's folder and print its path."""
    arguments = parser().parse_all(argv)

    from fastkto.training.output.display.picture import report

    print(escaped(str(report(Path(arguments.run_dir).expanduser()))))
    return 0


def parser() -> StrictParser:
    """The one argument."""
    found = StrictParser(command="report", description="Draw RUN_DIR/metrics.jsonl as RUN_DIR/report.png.")
    found.add_argument("run_dir", metavar="RUN_DIR", help="output directory of a training run")
    return found
