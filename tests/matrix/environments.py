"""Where rows run: a Python environment, and a copy of this checkout that is installed in it.

A copy each, because an editable install builds the native library into the folder that it installs.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
NEWEST = ["torch==2.15.0", "transformers==5.24.0", "triton==3.9.0"]
NUMPY_OF_THE_OLDEST = "numpy<2.4"  # the interpreter of triton 3.6 turns arrays of one entry into numbers
SETUPTOOLS = "setuptools>=77,<82"  # ours needs 77, torch 2.11 refuses 82


class Environment(NamedTuple):
    """An interpreter, the folder that its tests are run in, and the variables that it is given."""

    python: Path
    source: Path
    variables: dict[str, str]


class Pins(NamedTuple):
    """A version of Python and what is installed in that version; everything else is the newest that fits."""

    python: str
    packages: list[str]


class NotMade(Exception):
    """Why an environment could not be made."""


def floors(pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """The oldest versions of the dependencies that pyproject allows."""
    requirements = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [re.sub(r"^([\w-]+)>=([\w.]+).*", r"\1==\2", requirement) for requirement in requirements]


def pins(name: str, torch: str) -> Pins:
    """Of a version row; `torch` is what the development environment has."""
    return {
        "oldest": Pins("3.11", [*floors(), NUMPY_OF_THE_OLDEST]),
        "newest": Pins("3.11", NEWEST),
        "python-3.11": Pins("3.11", [torch]),
        "python-3.13": Pins("3.13", [torch]),
    }[name]


def own() -> Environment:
    """The checkout itself, under the interpreter that runs this."""
    return Environment(Path(sys.executable), ROOT, dict(os.environ))


def make(name: str, folder: Path, torch: str, pythons: dict[str, str]) -> Environment:
    """Make the environment in the folder anew: what an earlier one held would be tried too.

    `torch` is a requirement and options of pip, such as an index, which then hold for torch of every version.
    """
    requirement, *options = torch.split()
    wanted = pins(name, requirement)
    interpreter = pythons[wanted.python]
    if shutil.which(interpreter) is None:
        variable = f"PYTHON{wanted.python.replace('.', '')}"
        raise NotMade(f"there is no {interpreter} on PATH; name one: {variable}=/path/to/python{wanted.python}")
    source, python = folder / "source", folder / "venv" / "bin" / "python"
    copy_checkout(source)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(wanted.packages) + "\n", encoding="utf-8")
    torch_of_row = next(package for package in wanted.packages if package.startswith("torch=="))
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    for command in (
        [interpreter, "-m", "venv", "--clear", str(folder / "venv")],
        [*pip, "--upgrade", "pip", SETUPTOOLS],
        [*pip, torch_of_row, *options],
        [*pip, "--no-build-isolation", "--constraint", str(constraints), "--editable", f"{source}[test]"],
    ):
        _run(command)
    return Environment(python, source, dict(os.environ))


def copy_checkout(target: Path) -> None:
    """Every file that git tracks or would, in the place of what was copied before."""
    shutil.rmtree(target, ignore_errors=True)
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():  # not one that is deleted and still tracked
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise NotMade(f"`{' '.join(command)}` failed: {said[-1]}")
