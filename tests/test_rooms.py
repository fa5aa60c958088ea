"""The openings of the rooms are true: each names every file of its room and no other, and its examples run."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastkto"
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/**/__init__.py"))
NAMED = re.compile(r"^ {4}(\w+/?) {2}", re.MULTILINE)
PATH = re.compile(r"`([\w*]+/[\w/.*]*)`")


def opening(room):
    return ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(PACKAGE).as_posix())
def test_an_opening_names_the_files_of_its_room(room):
    files = {path.stem for path in room.glob("*.py")} - {"__init__"}
    folders = {f"{path.parent.name}/" for path in room.glob("*/__init__.py")}
    named = NAMED.findall(opening(room))
    assert sorted(named) == sorted(files | folders)
    assert len(named) <= 9, "a tenth entry asks for a new room"
    assert 10 <= len(opening(room).splitlines()) <= 25


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(PACKAGE).as_posix())
def test_a_path_in_an_opening_leads_somewhere(room):
    for path in PATH.findall(opening(room)):
        pattern = path.rstrip("/")
        places = [*ROOT.glob(pattern), *PACKAGE.glob(pattern), *PACKAGE.glob(f"{pattern}.py")]
        assert places, path


def test_the_examples_of_the_openings_run():
    attempted = {}
    for room in ROOMS:
        if ">>>" in opening(room):
            module = importlib.import_module(".".join(room.relative_to(ROOT).parts))
            failed, attempted[room.name] = doctest.testmod(module)
            assert not failed, room
    assert attempted["batch"] >= 4


def test_the_tests_stand_in_the_same_rooms():
    rooms = {room.relative_to(PACKAGE).as_posix() for room in ROOMS}
    tests = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").glob("*/**/test_*.py")}
    assert tests - rooms == {"compat", "gpu", "kernels"}, "hosts, GPUs and Triton's interpreter are no rooms"
    helpers = {path.stem for path in (ROOT / "tests" / "helpers").glob("*.py")}
    assert not helpers & {path.name for path in (ROOT / "tests").iterdir()}, "both would be imported by one name"
