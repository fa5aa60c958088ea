"""Which version of a host is installed, and whether an integration was tested with it and its seams are there."""

import inspect
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastkto.errors import InputError


def require_version(package: str, *, known: Sequence[str], integration: str) -> str:
    """The installed version of a host, which must be one of those that `integration` was tested with.

    Args:
        package: the name that pip knows, as in "liger-kernel".
        known: whole versions, as in "1.16.0".
        integration: what refuses, as in "fastkto.integrations.trl".

    Raises:
        ValueError: another version, or none; names it and the known ones.
    """
    try:
        found = version(package)
    except PackageNotFoundError:
        found = None
    if found is None or found not in known:
        expected = f"{' or '.join(known)}, which {integration} was tested with"
        raise InputError(f"version of {package}", found, expected, f"Run: pip install '{package}=={known[-1]}'")
    return found


def require_parameters(function: Callable[..., Any], *names: str, integration: str) -> None:
    """Check that a host's function takes exactly these parameters, `self` and `ctx` left out.

    Raises:
        ValueError: it takes others: somebody has changed or patched the host.
    """
    found = tuple(name for name in inspect.signature(function).parameters if name not in ("self", "ctx"))
    if found != names:
        seam = f"{function.__module__}.{function.__qualname__}"
        fix = "Install the host unmodified, and switch other patches of it off."
        raise InputError(f"parameters of {seam}", found, f"{names}, which {integration} replaces", fix)
