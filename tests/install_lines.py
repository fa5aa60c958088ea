"""Run the install lines of README and docs as a newcomer would: each block of them in an empty environment.

    python tests/install_lines.py [--python INTERPRETER] [--torch "REQUIREMENT OPTIONS"]

A page's line that takes torch from an index of its own is replaced by --torch, and so is the torch that a page says is
there already; both are said. What follows must import. The exit status is 1 where a block failed.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from matrix.environments import ROOT, copy_checkout

AT = ROOT / "build" / "install-lines"
INDEX = "--index-url"


class Block(NamedTuple):
    """The install lines of one block of code."""

    where: str
    commands: list[list[str]]


def blocks(pages: list[Path]) -> list[Block]:
    """Blocks of shell code with `pip install` in them, comments removed."""
    found = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"```bash\n(.*?)```", text, re.DOTALL):
            lines = [shlex.split(line, comments=True) for line in match[1].splitlines() if "pip install" in line]
            commands = [words for words in lines if words[:2] == ["pip", "install"]]
            if commands:
                number = text.count("\n", 0, match.start(1)) + 1
                found.append(Block(f"{page.relative_to(ROOT)}:{number}", commands))
    return found


def install(block: Block, python: str, torch: str) -> str:
    """What came of installing its lines in an empty environment, in one line."""
    shutil.rmtree(AT, ignore_errors=True)
    copy_checkout(AT / "source")
    pip = [str(AT / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    has_index = any(INDEX in words for words in block.commands)
    commands = [] if has_index else [[*pip, *torch.split()]]
    commands += [[*pip, *(torch.split() if INDEX in words else words[2:])] for words in block.commands]
    check = [str(AT / "venv" / "bin" / "python"), "-c", "import fastkto; fastkto.kto_loss"]
    start = time.monotonic()
    for command in ([python, "-m", "venv", str(AT / "venv")], *commands, check):
        done = subprocess.run(command, cwd=AT / "source", capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
            return f"FAILED at `{shlex.join(command[-3:])}`: {said[-1]}"
    how = "in the place of the page's index" if has_index else "there before, as the page says"
    return f"installed in {time.monotonic() - start:.0f} s; {torch} {how}"


def main() -> int:
    """Every block, one printed line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environments")
    parser.add_argument("--torch", default="torch==2.13.0", help="requirement of torch and options of pip")
    options = parser.parse_args()
    failed = 0
    for block in blocks([ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]):
        outcome = install(block, options.python, options.torch)
        failed += outcome.startswith("FAILED")
        print(f"{block.where:24}{outcome}", flush=True)
    shutil.rmtree(AT, ignore_errors=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
