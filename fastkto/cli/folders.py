"""An output folder that appears whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastkto.errors import InputError


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
