"""CONTRIBUTING is true: its recipes name files and tests that exist, and commands that the Makefile has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^### (.+)\n((?:(?!^##).*\n)+)", TEXT, re.MULTILINE))
QUOTED = re.findall(r"`([^`\n]+)`", TEXT)
PATHS = sorted({quoted.partition("::")[0] for quoted in QUOTED if re.fullmatch(r"[\w./]+/[\w./]*(::\w+)?", quoted)})
TESTS = sorted(quoted for quoted in QUOTED if "::" in quoted)


def test_the_recipes_are_there_and_name_files_and_tests():
    assert [*RECIPES] == ["A loss", "A backend of the head", "A host", "A model family", "A field of the config"]
    for name, text in RECIPES.items():
        assert {"fastkto/", "tests/"} <= set(re.findall(r"`(fastkto/|tests/)", text)), name


@pytest.mark.parametrize("path", PATHS)
def test_a_path_leads_somewhere(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("test", TESTS)
def test_a_test_is_where_it_is_said_to_be(test):
    path, name = test.split("::")
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


def test_the_commands_are_those_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", TEXT)) <= targets


def test_the_search_for_what_asks_for_kl_rows_finds_something():
    (searched,) = re.findall(r"`git grep '(.+)' fastkto`", TEXT)
    assert any(searched in path.read_text(encoding="utf-8") for path in (ROOT / "fastkto").rglob("*.py"))
