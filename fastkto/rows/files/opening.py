"""Which files are read, and their bytes and text, whatever they are compressed with."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fastkto.errors import InputError

KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".tsv": "csv",
    ".ndjson": "json",
}
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def kind_of(path: Path) -> str | None:
    """json, csv or parquet, by the ending before that of a compression; None for a file that is not read."""
    inner = path.with_suffix("") if path.suffix.lower() in _DECOMPRESS else path
    return KINDS.get(inner.suffix.lower())


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, decompressed where its ending says so."""
    opener = _DECOMPRESS.get(path.suffix.lower())
    return opener(path) if opener else path.open("rb")


def encoding_of(path: Path) -> str:
    """The encoding that a byte order mark names, else UTF-8."""
    with open_bytes(path) as file:
        start = file.read(3)
    return next((name for mark, name in _BOMS.items() if start.startswith(mark)), "utf-8")


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[IO[str]]:
    """The text of a file, its line ends as they are."""
    with open_bytes(path) as file, io.TextIOWrapper(file, encoding=encoding, newline="") as text:
        yield text


def damaged(path: Path, reason: object) -> InputError:
    """The error for a file that cannot be read."""
    fix = f"The reader says: {reason}."
    return InputError("dataset", str(path), "a file that can be read to its end", fix)


def not_text(path: Path, error: UnicodeDecodeError, line: int) -> InputError:
    """The error for bytes that are no UTF-8."""
    return InputError(
        "dataset",
        str(path),
        "text in UTF-8",
        f"The reader says: byte {error.object[error.start]:#x} in or after line {line} is none. Save it as UTF-8.",
    )


def _zstandard(path: Path) -> Any:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


_DECOMPRESS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstandard,
}
