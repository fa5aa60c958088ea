"""One environment a host pin: install the host, add fastkto, look that nothing of the host's moved, run its test.

    python tests/compat/environments.py --at DIR [HOST...]      all hosts without a name

Needs an index of Python packages and nothing else. Run it with an interpreter that has torch and setuptools: it builds
fastkto's wheel once. The outcome of every host goes to `tests/compat/results.json`, with its date. SMOLLM2=FOLDER in
the environment, a folder of that model, has the paths compared on it too: figures, CPU time and peak memory.
HALOS=FOLDER, a checkout of HALOs at that commit, is what halos-4831988 runs.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests/compat/results.json"
TORCH = "torch==2.13.0"
TESTING = ["pytest>=8", "pytest-benchmark>=5"]


class Host(NamedTuple):
    """What is pinned, and the tests that run the host's own path beside ours."""

    pins: list[str]
    tests: list[str]
    base: str = ""
    """Of BASES, an environment whose packages this one sees behind its own."""
    variables: Mapping[str, str] = MappingProxyType({})
    """Of the environment in which the tests run."""


BASES = {"trl-base": [TORCH, "transformers==5.23.0", "peft==0.21.2", "accelerate", "datasets", "triton", *TESTING]}


def trl(version: str, *pins: str, **variables: str) -> Host:
    """A release of TRL: its trainer, and the head that it has."""
    minor = int(version.split(".")[1])
    heads = ["test_trl_head.py"] if minor >= 15 else ["test_trl_chunked_head.py"]
    heads += ["test_trl_chunked_kto.py"] if minor == 14 else []
    return Host([f"trl=={version}", *pins], ["test_trl.py", "test_trl_data.py", *heads], "trl-base", variables)


# the head of TRL 1.15 has no other way to run on a CPU than Triton's interpreter, which is slow
INTERPRETED = [
    *(f"test_trl.py::test_kto_equals_the_host[{case}]" for case in ("full", "new adapter")),
    "test_trl_head.py::test_every_trainer_stays_the_same[kto]",
    "test_trl_head.py::test_the_head_gives_what_trls_gives",
]
TRL = ["1.9.1", "1.9.2", "1.10.0", "1.11.0", "1.12.0", "1.13.0", "1.14.0", "1.14.1", "1.14.2", "1.16.0"]
HOSTS = {
    **{f"trl-{version}": trl(version) for version in TRL},
    "trl-1.9.0": trl("1.9.0", "transformers==5.16.1"),  # Axolotl's pins
    "trl-1.15.0": trl("1.15.0", TRITON_INTERPRET="1")._replace(tests=INTERPRETED),
    "unsloth-2026.10.9": Host(
        ["unsloth==2026.10.9", "trl==1.14.2", "transformers==5.17.0", "datasets<5"], ["test_unsloth.py"], "trl-base"
    ),
    "halos-4831988": Host(
        ["setuptools>=77,<82", "hydra-core==1.3.2", "omegaconf", "wandb", "openai", "pandas"],
        ["test_halos.py", "test_halos_checkout.py"],
        "trl-base",
    ),
    "liger-0.8.5": Host([TORCH, "liger-kernel==0.8.5"], ["test_liger.py"]),
    "llamafactory-0.9.5": Host(
        # the newest torch for which there is a torchaudio, which it imports
        ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0", "llamafactory==0.9.5", "trl==0.24.0"],
        ["test_llamafactory.py"],
    ),
    "ms-swift-4.6.0": Host([TORCH, "ms-swift==4.6.0", "trl==0.29.1", "transformers==5.19.0"], ["test_swift.py"]),
    "axolotl-0.19.0": Host([TORCH, "axolotl==0.19.0"], ["test_axolotl.py"]),
}


def main() -> None:
    """Every host that was asked for, one after the other; the exit status is that of the worst."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hosts", nargs="*", metavar="HOST", help=f"of {', '.join(HOSTS)}")
    parser.add_argument("--at", type=Path, required=True, help="folder for the environments; existing ones are used")
    arguments = parser.parse_args()
    if unknown := set(arguments.hosts) - set(HOSTS):
        parser.error(f"unknown hosts {sorted(unknown)}, known are {', '.join(HOSTS)}")
    wheel = build_wheel(arguments.at / "wheel")
    failed = False
    for name in arguments.hosts or HOSTS:
        outcome = check(name, arguments.at / name, wheel)
        record(name, outcome)
        failed |= bool(outcome["failed"])
    sys.exit(failed)


def build_wheel(folder: Path) -> Path:
    """fastkto as a user of a package index would get it."""
    for old in folder.glob("*.whl"):
        old.unlink()
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check(name: str, folder: Path, wheel: Path) -> dict[str, object]:
    """Install, compare what is installed before and after, test."""
    host, python = HOSTS[name], folder / "bin/python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        if host.base:
            behind(folder, folder.parent / host.base, BASES[host.base])
        install(python, *host.pins, *([] if host.base else TESTING))
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "fastkto"], check=True)
    before = installed(python)
    install(python, str(wheel))
    moved = sorted(set(before.items()) - set(installed(python).items()))
    print(f"{name}: installing fastkto moved {moved or 'nothing'} of {len(before)} packages", flush=True)
    # -P: without it the checkout stands in front of the package that was installed
    tests = [ROOT / "tests/compat" / test for test in host.tests]
    test = [python, "-P", "-m", "pytest", *tests, "-q", "-s", "-p", "no:cacheprovider"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"} | host.variables
    done = subprocess.run(test, cwd=ROOT, env=offline, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="", flush=True)
    summary = next((line for line in reversed(done.stdout.splitlines()) if " in " in line), "no summary")
    ran = "passed" in summary and "skipped" not in summary and done.returncode == 0
    kept = {package: before.get(package) for package in ("torch", "transformers", "trl", "peft", "accelerate")}
    outcome = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "packages": kept,
        "moved_by_installing_fastkto": moved,
        "tests": host.tests,
        "summary": summary.strip("= "),
        "failed": bool(moved) or not ran,
    }
    if model := os.environ.get("SMOLLM2"):
        found = on_smollm2(python, name.rpartition("-")[0], model, folder.parent / "smollm2")
        outcome["failed"] |= found is None
        outcome["smollm2"] = found and found | {"date": outcome["date"]}
    return outcome


def behind(folder: Path, base: Path, pins: list[str]) -> None:
    """Let an environment find the packages of another, which is made where it is missing."""
    if not (base / "bin/python").exists():
        venv.create(base, with_pip=True)
        install(base / "bin/python", *pins)
    (here,), (there,) = (list(each.glob("lib/python*/site-packages")) for each in (folder, base))
    (here / "base.pth").write_text(f"{there.resolve()}\n")


def on_smollm2(python: Path, host: str, model: str, folder: Path) -> dict[str, object] | None:
    """What `smollm2.py` prints; None where a figure differs or a side does not run."""
    command = [python, ROOT / "tests/compat/smollm2.py", host, model, folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="", flush=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def install(python: Path, *packages: str) -> None:
    """By the environment's own pip."""
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)


def installed(python: Path) -> dict[str, str]:
    """Name to version, as `pip list --format=freeze` has them."""
    done = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True)
    return dict(line.split("==", 1) for line in done.stdout.split())


def record(name: str, outcome: dict[str, object]) -> None:
    """Replace the entry of this host, keep the others' and what an earlier run found on SmolLM2."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known[name] = known.get(name, {}) | outcome
    RESULTS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
