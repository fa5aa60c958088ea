"""The suite on what other machines are like: one printed line a row.

    python -m matrix [--rows "NAME ..."] [--results FOLDER] -- ARGUMENTS OF PYTEST

Rows of variables run in this environment, rows of versions in environments of their own under build/matrix, made here.
With --results each row is written to a file there as soon as it ends. The exit status is 1 where a row has a failure.
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from matrix.environments import ROOT, Environment, NotMade, make, own
from matrix.record import keep, path_of
from matrix.rows import NUMERICS, ROWS, Outcome, run

AT = ROOT / "build" / "matrix"


def main() -> int:
    """Every row that was asked for, one after the other."""
    options = _options()
    file = options.results and path_of(options.results, datetime.now(UTC).date().isoformat())
    made: dict[str | None, Environment] = {None: own()}
    failed: list[str] = []
    for name in options.rows:
        row = ROWS[name]
        try:
            if row.environment not in made:
                made[row.environment] = make(row.environment, AT / row.environment, options.torch, options.pythons)
        except NotMade as error:
            print(f"{name:32}not run: {error}", flush=True)
            failed.append(f"{name}: not run")
            continue
        log = AT / f"{options.log}{name.replace('=', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        outcome: Outcome = run(row, made[row.environment], options.arguments, log)
        print(outcome.line(name), flush=True)
        failed += [f"{name}: {failure}   ({log.relative_to(ROOT)})" for failure in outcome.failures]
        if file:
            keep(file, name, row, made[row.environment], outcome)
    print("\n".join(["", *failed] if failed else []), end="\n" if failed else "")
    return int(bool(failed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", metavar="NAMES", help="of " + ", ".join(ROWS) + "; numerics; default all")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where the result file goes")
    parser.add_argument("--log", default="", metavar="PREFIX", help="what the names of log files begin with")
    parser.add_argument(
        "--torch", default="torch==2.13.0", help="requirement and pip options, for the rows of a Python"
    )
    parser.add_argument("--python311", default="python3.11", help="the interpreter for Python 3.11")
    parser.add_argument("--python313", default="python3.13", help="the interpreter for Python 3.13")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="of pytest, behind --")
    options = parser.parse_args()
    options.pythons = {"3.11": options.python311, "3.13": options.python313}
    names = options.rows.split()
    options.rows = [*NUMERICS] if names == ["numerics"] else names or [*ROWS]
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"--rows: {' '.join(unknown)} is not a row; there are {', '.join(ROWS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
