"""How this fastkto was installed: its version, and the `pip install` that adds to it or builds it again.

pip notes where a package came from (PEP 610): a folder, a file, a repository, or nothing where it was an index.
"""

import json
import re
import shlex
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

PIP = ("pip", "install")
CHECKOUT = Path(__file__).parents[1]
NOT_ISOLATED = "--no-build-isolation"  # the native library is built with the torch that is there
AGAIN = ("--no-deps", "--force-reinstall", "--no-cache-dir")  # pip keeps the wheel that it built of an sdist


class Origin(NamedTuple):
    """Where the installed package came from."""

    path: Path
    editable: bool

    def __str__(self) -> str:
        return f"{self.path}, editable" if self.editable else str(self.path)

    @property
    def is_source(self) -> bool:
        """A folder or an sdist, which pip builds."""
        return self.path.suffix != ".whl"


def version() -> str:
    """Of the installed package: that of the tag or commit it was built from."""
    installed = _installed()
    return "0.0.0+uninstalled" if installed is None else installed.version


def origin() -> Origin | None:
    """The folder or file that was installed, if it is still there; a checkout that is imported as it stands."""
    noted = _direct_url(_installed())
    if not noted and (CHECKOUT / "pyproject.toml").exists():
        return Origin(CHECKOUT, editable=True)
    url = urlsplit(noted.get("url", ""))
    path = Path(url2pathname(url.path))
    editable = noted.get("dir_info", {}).get("editable", False)
    return Origin(path, editable) if url.scheme == "file" and path.exists() else None


def add_command(extra: str, package: str) -> str:
    """What installs the extra into the installation at hand; `package` is what of it is missing."""
    found, installed = origin(), _installed()
    if found is not None:
        return _pip(found, f"{found.path}[{extra}]")
    if installed is None:
        return shlex.join([*PIP, package])
    needed = _requirements(installed, extra) if _direct_url(installed) else [f"fastkto[{extra}]"]
    return shlex.join([*PIP, *needed])


def build_command() -> str | None:
    """What builds the installed package again, or None where its source is not at hand."""
    found, installed = origin(), _installed()
    if found is not None:
        again = [] if found.path.is_dir() else AGAIN
        return _pip(found, str(found.path), *again) if found.is_source else None
    if installed is None or _direct_url(installed):
        return None
    return shlex.join([*PIP, NOT_ISOLATED, *AGAIN, "--no-binary", "fastkto", f"fastkto=={installed.version}"])


def _pip(found: Origin, requirement: str, *options: str) -> str:
    of_source = [NOT_ISOLATED, *options] if found.is_source else []
    return shlex.join([*PIP, *of_source, *(["-e"] if found.editable else []), requirement])


def _installed() -> Distribution | None:
    try:
        return distribution("fastkto")
    except PackageNotFoundError:
        return None


def _direct_url(installed: Distribution | None) -> dict[str, Any]:
    noted: dict[str, Any] = json.loads((installed and installed.read_text("direct_url.json")) or "{}")
    return noted


def _requirements(installed: Distribution, extra: str) -> list[str]:
    """What the extra alone needs, without its marker; an extra of ours in it is replaced by what that one needs."""
    found = []
    for requirement in installed.requires or []:
        name, _, marker = requirement.partition(";")
        if not re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", marker):
            continue
        own = re.fullmatch(r"fastkto\[(.+)\]", name.strip())
        more = [_requirements(installed, other.strip()) for other in own[1].split(",")] if own else [[name.strip()]]
        found += [one for part in more for one in part]
    return found
