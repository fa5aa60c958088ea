"""The Triton kernels without a GPU: in the interpreter, through the compiler, as a package, and staged for the Hub."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import fastkto_kernels as fk
import pytest
import torch
from fastkto_kernels.table import TILES, architecture

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")


def child(*arguments, **environment):
    """A Python of its own, because Triton chooses the interpreter when a kernel is defined."""
    settings = {"TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **settings, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", ["test_lm_head", "test_loss_terms", "test_addresses"])
def test_in_the_interpreter(name):
    out = child("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", f"tests/kernels/{name}.py")
    assert " passed" in out


@pytest.mark.parametrize("name", ["test_logprobs", "test_fused_kto", "test_loss_terms", "test_compile"])
def test_the_backend_in_the_interpreter(name):
    """The tests that every backend passes."""
    out = child(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore",
        "-k",
        "triton and not gradcheck",
        f"tests/head/{name}.py",
    )
    assert " passed" in out


def test_the_package_needs_torch_triton_and_the_standard_library_alone():
    allowed = set(sys.stdlib_module_names) | {"torch", "triton"}
    for path in (ROOT / "kernels/fastkto_kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            assert {name.partition(".")[0] for name in names} <= allowed, path


def test_every_architecture_has_a_plan_that_no_batch_changes():
    assert set(TILES) == {*ARCHITECTURES, "interpreter"}
    assert {architecture(*c) for c in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))} == set(ARCHITECTURES)
    assert architecture(7, 5) is None
    for arch in ARCHITECTURES:
        for depth in (7, 576, 4096, 16384):
            plan = fk.plan_for(arch, torch.bfloat16, depth)
            assert plan.split_columns % plan.anchor_columns == 0
            assert fk.plan_for(arch, torch.float32, depth).route == "fold"


def test_a_cpu_without_the_interpreter_is_named():
    head = fk.Head(torch.zeros(2, 4), torch.zeros(5, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected a CUDA GPU"):
        fk.forward(head)


def test_a_staged_copy_loads_from_the_hub_package(tmp_path):
    spec = importlib.util.find_spec("kernels")
    if spec is None or spec.origin is None:
        pytest.skip("the package `kernels` is not installed: pip install --no-deps kernels kernels-data")
    child("kernels/stage_hub.py", str(tmp_path))
    child("-c", STAGED, str(tmp_path / "build" / "torch-cuda"))


STAGED = """
import sys
from pathlib import Path
import torch
from kernels import get_local_kernel
k = get_local_kernel(Path(sys.argv[1]))
assert Path(k.__file__).parent == Path(sys.argv[1])
hidden, weight, targets = torch.randn(5, 8), torch.randn(20, 8), torch.randint(0, 20, (5,))
outputs, _ = k.forward(k.Head(hidden, weight, targets))
expected = (hidden @ weight.T).log_softmax(1).gather(1, targets[:, None])[:, 0]
assert torch.allclose(outputs.logps, expected, atol=1e-5)
"""


def compiled(triton, architectures, *, quick):
    spec = importlib.util.spec_from_file_location("compile_table", ROOT / "benchmarks/compile_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.run(triton, architectures, quick=quick)
    assert rows
    return [(row, module.faults(row)) for row in rows]


def test_hopper_gets_its_matrix_instructions_and_no_spill_beside_them():
    for row, faults in compiled(None, (90,), quick=True):
        assert not faults, row


@pytest.mark.slow
@pytest.mark.parametrize("version", ["installed", "3.6.0"])
def test_every_tile_compiles_on_every_architecture(version, tmp_path_factory):
    folder = None
    if version != "installed":
        folder = str(tmp_path_factory.mktemp("triton"))
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, f"triton=={version}"]
        subprocess.run(command, check=True)
    for row, faults in compiled(folder, (80, 89, 90, 100, 120), quick=False):
        assert not faults, row
        assert version == "installed" or row["triton"] == version
