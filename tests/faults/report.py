"""Runs the cases and puts them into one table."""

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from faults import bad_data, bad_runs, bad_state  # noqa: F401  (they fill CASES)
from faults.cases import CASES
from faults.folder import contents, run, template, working_folder
from faults.runs import FAULTS, Folders


@dataclass
class Line:
    """A line of the table; `wrong` says what is not as it should be."""

    kind: str
    name: str
    done: str
    lost: str
    message: str
    wrong: str = ""


def bad_inputs(*, each: int | None = None) -> list[Line]:
    """Every bad input, or so many of each kind, through the command line in this process."""
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        template(source := Path(scratch) / "template")
        chosen = [(kind, name) for kind, cases in CASES.items() for name in list(cases)[:each]]
        lines = [_bad_input(kind, name, source) for kind, name in chosen]
    for message, count in Counter(_plain(line.message) for line in lines).items():
        for line in lines:
            if count > 1 and _plain(line.message) == message:
                line.wrong = line.wrong or "another input has the same message"
    return lines


def _bad_input(kind: str, name: str, source: Path) -> Line:
    with working_folder(source) as folder:
        argv = CASES[kind][name]()
        before = contents()
        try:
            code, said = run(argv)
        except Exception as error:
            return Line(kind, name, "refused", "?", "", f"a traceback: {type(error).__name__}: {error}"[:600])
        changed = sorted(path for path, value in contents().items() | before.items() if before.get(path, 0) != value)
        changed += sorted(before.keys() - contents().keys())
        said = said.replace(f"{folder}/", "").replace(str(folder), ".")
    wrong = ""
    if code == 0:
        wrong = "exit code 0"
    elif "Traceback" in said or said.count("fastkto") < 1:
        wrong = f"no clear message: {said[:300]!r}"
    elif changed:
        wrong = f"changed on disk: {changed[:5]}"
    return Line(kind, name, "refused before anything was written", "nothing", said, wrong)


def faults(*, short: bool = False) -> list[Line]:
    """Every fault; in short those of one process."""
    lines = []
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folders = Folders(Path(scratch))
        for name, fault in FAULTS.items():
            if short and fault.slow:
                continue
            try:
                lost, message = fault.run(folders)
                lines.append(Line("fault", name, fault.done, lost, message))
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"[:600]
                lines.append(Line("fault", name, fault.done, "?", "", wrong))
    return lines


def render(happened: list[Line], refused: list[Line]) -> str:
    """The table as text, a message cut to its first part."""
    rows = [("", "fault or input", "what was done", "lost", "message")]
    rows += [(line.kind, line.name, line.done, line.lost, _first(line.message)) for line in (*happened, *refused)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows
    )


def _first(message: str, limit: int = 150) -> str:
    text = " ".join(message.split())
    return text if len(text) <= limit else f"{text[:limit]}..."


def _plain(message: str) -> str:
    """Without the paths and numbers that tell two cases apart by accident."""
    return re.sub(r"'[^']*\.(jsonl|csv|parquet|gz|yaml)'|\d+", "#", message)
