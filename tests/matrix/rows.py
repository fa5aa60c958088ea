"""What is run: each row is the suite in one environment under some variables."""

import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from matrix.environments import Environment


class Row(NamedTuple):
    """An environment by name, None for the one that this script runs in, and the variables that are set there."""

    environment: str | None
    variables: dict[str, str]


NUMERICS = {
    f"{name}={value}": Row(None, {name: value})
    for name, value in (
        ("MKL_CBWR", "COMPATIBLE"),
        ("MKL_CBWR", "AVX2"),
        ("MKL_ENABLE_INSTRUCTIONS", "AVX2"),
        ("ATEN_CPU_CAPABILITY", "default"),
        ("OMP_NUM_THREADS", "1"),
        ("OMP_NUM_THREADS", "2"),
    )
}
VERSIONS = {name: Row(name, {}) for name in ("oldest", "newest", "python-3.11", "python-3.13")}
ROWS = NUMERICS | VERSIONS


class Outcome(NamedTuple):
    """How the tests of a row ended; `failures` names those that failed or could not be set up."""

    passed: int
    failed: int
    skipped: int
    seconds: float
    failures: list[str]

    def line(self, name: str) -> str:
        """One line of the table."""
        counts = f"passed {self.passed:5}   failed {self.failed:3}   skipped {self.skipped:4}"
        return f"{name:32}{counts}   {self.seconds:6.0f} s"


def run(row: Row, where: Environment, arguments: list[str], log: Path) -> Outcome:
    """The row's tests; what pytest prints goes to the log."""
    report = log.with_suffix(".xml")
    report.unlink(missing_ok=True)
    command = [str(where.python), "-m", "pytest", *arguments, f"--junitxml={report.resolve()}"]
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            command,
            cwd=where.source,
            env=where.variables | row.variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    seconds = round(time.monotonic() - start, 1)
    if not report.exists():
        return Outcome(0, 1, 0, seconds, [f"pytest ended with code {done.returncode} and without a report"])
    return counted(report, done.returncode, seconds)


def counted(report: Path, code: int, seconds: float) -> Outcome:
    """What pytest's XML report says; an exit code for which no failed test accounts is a failure of its own."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failures = [_name(case) for case in cases if _is(case, "failure") or _is(case, "error")]
    skipped = sum(_is(case, "skipped") for case in cases)
    passed = sum(not (_is(case, "failure") or _is(case, "error") or _is(case, "skipped")) for case in cases)
    if code and not failures:
        failures = [f"pytest ended with code {code}"]
    return Outcome(passed, len(failures), skipped, seconds, failures)


def _is(case: ElementTree.Element, outcome: str) -> bool:
    return case.find(outcome) is not None


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname')}::{case.get('name')}"
