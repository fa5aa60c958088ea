"""What a result was measured on: written into every result file."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("fastkto", "torch", "triton", "transformers", "accelerate", "trl", "liger-kernel")


def here() -> dict[str, Any]:
    """The device of a `Case` and whether it computes in bf16: the GPU where there is one."""
    cuda = torch.cuda.is_available()
    return {"device": "cuda" if cuda else "cpu", "bf16": cuda and torch.cuda.is_bf16_supported()}


def machine(device: str, threads: int | None = None) -> dict[str, Any]:
    """Device ("cuda" or "cpu") and threads of what was measured; date, versions, commit and command of this run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": threads or torch.get_num_threads(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _commit(),
        "command": _command(),
    }


def _processor() -> str:
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} CPU cores ({platform.machine()}, {instructions})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout that this file is in; None where it is installed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None


def _command() -> str:
    """Without folders, which are of this machine."""
    program, *arguments = (Path(word).name if os.sep in word else word for word in sys.argv)
    start = ["python", program] if program.endswith(".py") and program != "__main__.py" else ["fastkto"]
    return " ".join([*start, *arguments])
