"""The face of the package: each public name stands in four places, the same for Python and for type checkers."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastkto

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastkto"
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")

OUTSIDE = """
import fastkto
from fastkto.batch import PackingCollator
from fastkto.losses import kto_loss

reveal_type(fastkto.KTOTrainer)
reveal_type(fastkto.KTOConfig)
reveal_type(fastkto.KTOConfig().beta)
reveal_type(fastkto.kto_loss)
reveal_type(fastkto.read_rows)
reveal_type(PackingCollator)
fastkto.KTOTrianer
"""
REVEALED = {
    6: r"def \(model: .*PreTrainedModel.*\) -> fastkto\.training\.trainer\.KTOTrainer",
    7: r"def \(.*\) -> fastkto\.config\.KTOConfig",
    8: r"float",
    9: r"def \(logps: torch\._tensor\.Tensor, .*fallback=fastkto\.losses\.kto\.KTOLoss\]",
    10: r"def \(source: .*\) -> .*",
    11: r"def \(max_length: .*\) -> fastkto\.batch\.packed\.PackingCollator",
}


def typed_imports(path):
    """Name -> module, of the imports that only type checkers read."""
    blocks = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names}


def test_the_four_places_of_a_public_name_agree():
    typed = typed_imports(PACKAGE / "__init__.py")
    assert typed == {name: f"fastkto.{room}" for name, room in fastkto._ROOMS.items()}
    assert sorted(fastkto.__all__) == sorted({*typed, "__version__"}) == dir(fastkto)
    (row,) = re.findall(r"^\| `fastkto` \| (.+) \|$", API, re.MULTILINE)
    assert re.findall(r"`(\w+)`", row) == sorted(fastkto.__all__)


@pytest.mark.parametrize("room", sorted({*fastkto._ROOMS.values()} - {"config"}))
def test_a_public_name_is_on_the_face_of_its_room(room):
    public = {name for name, home in fastkto._ROOMS.items() if home == room}
    assert public <= {*importlib.import_module(f"fastkto.{room}").__all__}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package's files as an installation has them."""
    folder = tmp_path_factory.mktemp("installed")
    build = ["egg_info", "--egg-base", folder, "build_py", "--build-lib", folder]
    subprocess.run([sys.executable, "setup.py", "-q", *build], cwd=ROOT, check=True, capture_output=True)
    return folder


def test_a_type_checker_outside_sees_real_types(installed, tmp_path):
    pytest.importorskip("mypy", reason="the dev extra brings mypy")
    (tmp_path / "use.py").write_text(OUTSIDE, encoding="utf-8")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", ROOT / ".mypy_cache" / "outside", "use.py"]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(mypy, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    revealed = dict(re.findall(r'^use\.py:(\d+): note: Revealed type is "(.+)"$', done.stdout, re.MULTILINE))
    assert {int(line) for line in revealed} == {*REVEALED}, done.stdout + done.stderr
    for line, expected in REVEALED.items():
        assert re.fullmatch(expected, revealed[str(line)]), revealed[str(line)]
    errors = re.findall(r"^use\.py:(\d+): error: (.+)$", done.stdout, re.MULTILINE)
    assert [line for line, _ in errors] == ["12"], done.stdout
    assert "KTOTrianer" in errors[0][1]
