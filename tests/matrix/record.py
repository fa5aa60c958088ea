"""The result file: one a processor and day, with what each row ran on."""

import json
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastkto.bench.machine import machine
from matrix.environments import Environment
from matrix.rows import Outcome, Row

VERSIONS = """
import importlib.metadata, json, platform, torch
names = ("torch", "triton", "transformers", "accelerate", "trl", "peft", "datasets")
versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
print(json.dumps({
    "versions": versions | {"torch": torch.__version__},
    "instructions": torch.backends.cpu.get_cpu_capability(),
}))
"""


def processor(cpuinfo: str | None = None) -> dict[str, str]:
    """Vendor and model as the kernel names them, where it does."""
    path = Path("/proc/cpuinfo")
    text = cpuinfo if cpuinfo is not None else path.read_text(encoding="utf-8") if path.exists() else ""
    found = dict(re.findall(r"^(vendor_id|model name)\s*: (.+)$", text, re.MULTILINE))
    vendor, model = found.get("vendor_id", platform.machine()), found.get("model name", platform.processor())
    return {"vendor": vendor, "model": model or platform.machine()}


def path_of(folder: Path, today: str) -> Path:
    """`matrix_<processor>_<date>.json`."""
    return folder / f"matrix_{re.sub(r'[^A-Za-z0-9]+', '-', processor()['model']).strip('-')}_{today}.json"


def keep(path: Path, name: str, row: Row, where: Environment, outcome: Outcome) -> None:
    """Put the row into the file, in the place of an earlier run of it that day; other rows stay."""
    about = machine("cpu")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": {}}
    entry = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": about["commit"],
        **ran_on(row, where),
        **outcome._asdict(),
    }
    result = {"processor": processor(), "device": about["device"], "rows": known["rows"] | {name: entry}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def ran_on(row: Row, where: Environment) -> dict[str, Any]:
    """Versions, and the instructions that torch uses under the row's variables."""
    variables = where.variables | row.variables
    asked = [str(where.python), "-c", VERSIONS]
    done = subprocess.run(asked, env=variables, cwd=where.source, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
