"""What a disk that is full, read-only or not ours says, as an error that names the path; folders that appear whole."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastkto.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
IN_THE_WAY = (errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
METRICS_FILE = "metrics.jsonl"
"""The log lines of a run, in its output_dir."""
WRITERS_SAY = ("PytorchStreamWriter", "inline_container", "No space left", "File too large", "os error", "I/O error")


@contextlib.contextmanager
def writing(argument: str, path: str | Path, what: str) -> Iterator[None]:
    """Turn what a failed write raises, torch's and safetensors' own errors too, into `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not _of_the_disk(error):
            raise
        number = getattr(error, "errno", errno.ENOSPC)
        mend = "Free space, or choose" if number in FULL else "Make it writable, or choose"
        mend = "Choose" if number in IN_THE_WAY else mend
        fix = f"{_reason(error)}. {mend} another {argument}."
        raise InputError(argument, str(path), f"a place where {what} can be written", fix) from error


def check_writable(argument: str, path: str | Path) -> None:
    """Raise `InputError` where a folder could not be made or written; leaves no trace."""
    target = Path(path).absolute()
    existing = next(folder for folder in (target, *target.parents) if os.path.lexists(folder))
    with writing(argument, path, "files"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(target)  # a name that is too long
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{existing} is not a directory")
        with tempfile.TemporaryFile(dir=existing):
            pass


@contextlib.contextmanager
def no_folder_left(path: str | None) -> Iterator[None]:
    """Take an empty folder away again that appeared in a block which then raised."""
    existed = path is None or os.path.isdir(path)
    try:
        yield
    except BaseException:
        if path is not None and not existed:
            with contextlib.suppress(OSError):
                os.rmdir(path)
        raise


def check_output(output: Path, *, overwrite: bool, keep: Iterable[Path]) -> None:
    """Raise `InputError` where `output` cannot be written, or where replacing it would delete one of `keep`."""
    if output.exists() and not output.is_dir():
        raise InputError("output_dir", str(output), "a directory, or a path that is free", "Choose another path.")
    for path in keep:
        if path.resolve().is_relative_to(output.resolve()):
            raise InputError("output_dir", str(output), f"a folder that does not hold {path}", "Choose another path.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise InputError("output_dir", str(output), "an empty or new folder", "Choose another, or add --overwrite.")


@contextlib.contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """A scratch folder on the same disk that takes the place of `output` when the block ends without an error."""
    output = output.resolve()
    existing = next(parent for parent in output.parents if parent.is_dir())
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=existing))
    try:
        whole, old = scratch / "new", scratch / "old"
        whole.mkdir()
        yield whole
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.exists():
            os.rename(output, old)
        try:
            os.rename(whole, output)
        except OSError:
            if old.exists():
                os.rename(old, output)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _of_the_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (*FULL, *REFUSED, *IN_THE_WAY)
    text = str(error)
    kind = isinstance(error, RuntimeError) or type(error).__name__ == "SafetensorError"
    return kind and any(words in text for words in WRITERS_SAY)


def _reason(error: BaseException) -> str:
    """The system's words: torch raises its own error while the one of the disk is its context."""
    while not isinstance(error, OSError) and isinstance(error.__context__, OSError):
        error = error.__context__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"Only a part of a file could be written ({str(error).splitlines()[0]})"
