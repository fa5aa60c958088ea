"""Whether the installed host still has the seams of `hosts`. Nothing here needs torch."""

import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from types import CodeType
from typing import Any, NamedTuple

from fastkto.errors import InputError
from fastkto.integrations.seams.hosts import WAYS, Seam, Way


class Verdict(NamedTuple):
    """What `examine` found."""

    way: Way
    version: str | None
    problem: InputError | None

    @property
    def tried(self) -> bool:
        """Whether this very version was run."""
        return self.way.checkout or self.version in self.way.tried


def require_seams(key: str) -> str | None:
    """The installed version of a host of `WAYS` whose seams fit. One that nobody has run is taken, and a line says so.

    Raises:
        ValueError: the host is absent or a seam differs: names it, what was found, what was expected and what to do.
    """
    found = examine(WAYS[key])
    if found.problem is not None:
        raise found.problem
    if not found.tried:
        from transformers.utils import logging

        logging.get_logger(__name__).warning_once(accepted(found))
    return found.version


def accepted(found: Verdict) -> str:
    """The line for a version that was not run."""
    way = found.way
    return (
        f"{way.name} was not run with {way.package} {found.version}, only with {', '.join(way.tried)}; "
        "what it replaces is the same there, so it is used."
    )


def examine(way: Way) -> Verdict:
    """Import the host and compare every seam; the first that differs is the problem."""
    try:
        found = None if way.checkout else version(way.package)
    except PackageNotFoundError:
        fix = f"Run: pip install '{way.package}=={way.tried[-1]}'"
        return Verdict(way, None, InputError(f"version of {way.package}", None, f"an installed {way.package}", fix))
    verdict = Verdict(way, found, None)
    try:
        for module in way.first:
            importlib.import_module(module)
        for seam in way.seams:
            _compare(seam, verdict)
    except InputError as problem:
        return verdict._replace(problem=problem)
    return verdict


def _compare(seam: Seam, verdict: Verdict) -> None:
    owner, found = _resolve(seam, verdict)
    if seam.parameters:
        parameters = tuple(name for name in inspect.signature(found).parameters if name not in ("self", "ctx"))
        if parameters not in seam.parameters:
            raise _differs(seam, verdict, parameters, " or ".join(map(str, seam.parameters)))
    if set(seam.entries) - set(found if seam.entries else ()):
        raise _differs(seam, verdict, sorted(found), f"entries {', '.join(seam.entries)}")
    words = set().union(*map(_words, _definitions(owner, found))) if seam.mentions else set()
    if missing := [word for word in seam.mentions if word not in words]:
        value, expected = f"code without {', '.join(missing)}", f"code that uses {', '.join(seam.mentions)}"
        raise _differs(seam, verdict, value, expected)


def _resolve(seam: Seam, verdict: Verdict) -> tuple[Any, Any]:
    """What holds the last name of a path, and what it holds."""
    module, _, names = seam.path.partition(":")
    if verdict.way.checkout and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        owner: Any = None
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise _differs(seam, verdict, f"{type(error).__name__}: {error}", f"a module {module} that imports") from error
    for name in names.split("."):
        try:
            owner, found = found, getattr(found, name)
        except (AttributeError, ImportError) as error:
            raise _differs(seam, verdict, "nothing of this name", "it to be there") from error
    return owner, found


def _differs(seam: Seam, verdict: Verdict, value: object, expected: str) -> InputError:
    way = verdict.way
    if way.checkout:
        there = fix = f"{way.package} at commit {way.tried[-1]}"
        return InputError(seam.name, value, f"{expected}, as in {there}", f"Run in a checkout of {fix}.")
    fix = f"Run: pip install '{way.package}=={way.tried[-1]}'"
    if verdict.tried:
        fix = "Install the host unmodified, and switch other patches of it off."
    tried = ", ".join(way.tried)
    return InputError(f"{seam.name} of {way.package} {verdict.version}", value, f"{expected}, as in {tried}", fix)


def _definitions(owner: Any, found: Any) -> Iterator[Any]:
    """A function, and those that it may call by `super()`."""
    name = getattr(found, "__name__", "")
    yield found
    for each in inspect.getmro(owner) if inspect.isclass(owner) else ():
        if name in vars(each):
            yield vars(each)[name]


def _words(function: Any) -> set[str]:
    """The names and strings of a function's code."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return set() if code is None else set(_words_of(code))


def _words_of(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_varnames)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _words_of(constant)
        else:
            yield from _strings(constant)


def _strings(constant: object) -> Iterator[str]:
    if isinstance(constant, str):
        yield constant
    elif isinstance(constant, tuple | frozenset):
        for each in constant:
            yield from _strings(each)
