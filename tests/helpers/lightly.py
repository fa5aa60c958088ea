"""A command in a process of its own, which must not import what takes seconds."""

import os
import subprocess
import sys

HEAVY = ("torch", "transformers", "accelerate", "datasets", "peft", "numpy", "trl")
RUN = f"""
import sys
from fastkto.cli import main
code = main(sys.argv[1:])
print(code, *({{*{HEAVY!r}}} & {{*sys.modules}}), sep=",")
"""


def run(*argv, path=""):
    """The process when it has ended; the packages in `path` are found first."""
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", RUN, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def lightly(*argv, path=""):
    """The exit code, stdout and stderr of a command that has imported nothing heavy."""
    done = run(*argv, path=path)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    code, _, imported = last.partition(",")
    assert not imported, imported
    return int(code), "\n".join(lines), done.stderr
