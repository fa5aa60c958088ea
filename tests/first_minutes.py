"""Follow the README as a newcomer would: its install lines in an empty environment, then its three commands.

    python tests/first_minutes.py --model FOLDER [--python INTERPRETER] [--torch "REQUIREMENT OPTIONS"]

The model that the README names is replaced by --model, the index of torch by --torch; both are said.
The exit status is 1 where a command failed.
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from install_lines import AT, ROOT, blocks, install

NAMED = "HuggingFaceTB/SmolLM2-135M-Instruct"


def commands() -> list[str]:
    """Those of the README's transcript."""
    (transcript,) = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line.removeprefix("$ ") for line in transcript.splitlines() if line.startswith("$ ")]


def main() -> int:
    """Every command, with what it prints and how long it takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder in the place of the Hub's model")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environment")
    parser.add_argument("--torch", default="torch==2.13.0", help="requirement of torch and options of pip")
    options = parser.parse_args()
    (block,) = blocks([ROOT / "README.md"])
    outcome = install(block, options.python, options.torch)
    print(f"{block.where}: {outcome}", flush=True)
    if outcome.startswith("FAILED"):
        return 1
    print(f"{NAMED}: {options.model} in its place", flush=True)
    for command in commands():
        print(f"$ {command}", flush=True)
        command = command.replace(NAMED, shlex.quote(str(options.model.resolve())))
        start, path = time.monotonic(), f"{AT / 'venv' / 'bin'}:/usr/bin:/bin"
        done = subprocess.run(
            ["bash", "-c", command], cwd=AT / "source", env={"PATH": path, "HOME": str(AT)}, check=False
        )
        print(f"({time.monotonic() - start:.0f} s)", flush=True)
        if done.returncode:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
