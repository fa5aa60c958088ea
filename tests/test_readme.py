"""The README is true: its figures are those of the result files, and every module has its place in the file tree."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_are_rendered_from_the_result_files():
    subprocess.run([sys.executable, ROOT / "benchmarks" / "render.py", "--check"], check=True)


def test_every_module_is_in_the_file_tree():
    tree = set(re.findall(r"[\w/]+", README.partition("## What is where")[2].partition("## Good to know")[0]))
    modules = {path.stem for path in (ROOT / "fastkto").glob("*.py")} - {"__init__", "__main__"}
    rooms = {f"{path.parent.name}/" for path in (ROOT / "fastkto").glob("*/__init__.py")}
    assert modules | rooms <= tree, (modules | rooms) - tree


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets


def test_pictures_and_links_are_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
