"""The records of a CSV file: every cell is the text of the file, and an empty cell is None."""

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastkto.errors import InputError
from fastkto.rows.files.opening import UNREADABLE, damaged, encoding_of, open_text

DELIMITERS = ",;\t|"
SAMPLE = 1 << 16


@dataclass(frozen=True)
class Dialect:
    """How a file is written; `note` says what is not as usual."""

    encoding: str
    delimiter: str
    note: str


def csv_records(path: Path) -> Iterator[dict[str, str | None]]:
    """The rows of `path` under its header. Errors: `InputError` naming the line of a row with too many or few cells."""
    dialect = dialect_of(path)
    csv.field_size_limit(sys.maxsize)
    with open_text(path, dialect.encoding) as file:
        reader = csv.reader(file, delimiter=dialect.delimiter, strict=True)
        try:
            header = _header(next(reader, []), path)
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise InputError(
                        "dataset",
                        str(path),
                        f"{len(header)} cells in line {reader.line_num}, one for each column of the header",
                        f"The reader says: there are {len(cells)}. Quote cells that hold {dialect.delimiter!r}, or "
                        "correct the header.",
                    )
                yield {name: cell or None for name, cell in zip(header, cells, strict=True)}
        except csv.Error as error:
            fix = f"The reader says: {error}. Write a quote within a quoted cell twice, and close every quote."
            line = f"cells that are quoted as CSV has it, in line {reader.line_num}"
            raise InputError("dataset", str(path), line, fix) from error


def dialect_of(path: Path) -> Dialect:
    """Encoding and separator of a file, from its bytes."""
    notes = []
    try:
        encoding = encoding_of(path)
        with open_text(path, encoding) as file:
            sample = head = file.read(SAMPLE)
            while head:
                head = file.read(1 << 20)
    except UNREADABLE as error:
        raise damaged(path, error) from error
    except UnicodeDecodeError as error:
        encoding = "cp1252" if _decodes(path, "cp1252") else "latin-1"
        with open_text(path, encoding) as file:
            sample = file.read(SAMPLE)
        example = error.object[max(0, error.start - 15) : error.start + 15].decode(encoding)
        notes.append(f"the file is not in UTF-8 and is read as {encoding}; if {example!r} is wrong, save it as UTF-8")
    delimiter = _delimiter(sample, path)
    if delimiter != ("\t" if ".tsv" in path.suffixes else ","):
        notes.append(f"cells are separated by {delimiter!r}")
    return Dialect(encoding, delimiter, "; ".join(notes))


def _delimiter(sample: str, path: Path) -> str:
    """The separator that cuts the header into most columns, of those that cut the first rows alike."""
    usual = "\t" if ".tsv" in path.suffixes else ","
    counts = {delimiter: _cells(sample, delimiter) for delimiter in DELIMITERS}
    best = max(DELIMITERS, key=lambda d: (len({*counts[d]}) == 1, counts[d][0] if counts[d] else 0, d == usual))
    return best if counts[best] and counts[best][0] > 1 else usual


def _cells(sample: str, delimiter: str) -> list[int]:
    """The number of cells in each of the first rows that the sample holds whole."""
    counts: list[int] = []
    with suppress(csv.Error):
        counts.extend(len(row) for row in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter) if row)
    return counts[: max(1, min(20, len(counts) - 1))]


def _decodes(path: Path, encoding: str) -> bool:
    try:
        with open_text(path, encoding) as file:
            while file.read(1 << 20):
                pass
    except UnicodeDecodeError:
        return False
    return True


def _header(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if double := next((name for name in names if names.count(name) > 1), None):
        fix = f"Rename one of the columns {double!r}."
        raise InputError("dataset", str(path), "a header that has each name once", fix)
    return names
