"""`fastkto doctor`: what is here, what will be used and why, and whether it computes what the oracle computes."""

import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Sequence
from typing import Any

import fastkto
from fastkto.cli.options.strict import StrictParser
from fastkto.installation import origin
from fastkto.integrations import seams

PACKAGES = ("torch", "triton", "transformers", "accelerate", "datasets", "peft", "bitsandbytes", "flash-attn", "trl")
HOSTS = {key: [key] for key in seams.WAYS if key != "trl head"} | {"trl": ["trl", "trl head"]}


def run(argv: Sequence[str]) -> int:
    """Print the findings; 1 if a check against the oracle fails, or a host that was asked about differs."""
    options = parser().parse_all(argv)
    show = not options.json
    found = ways_into(options.host, with_progress=show) if options.host else examine(with_progress=show)
    if options.json:
        print(json.dumps(found, indent=2))
    return 0 if found["ok"] else 1


def parser() -> StrictParser:
    """The options."""
    description = "Versions, devices, backends of the head, and a check of head and loss against the oracle."
    found = StrictParser(command="doctor", description=description)
    found.add_argument("--json", action="store_true", help="print one JSON object")
    found.add_argument("--host", choices=HOSTS, help="say instead whether this installed host is one that fastkto fits")
    return found


def ways_into(host: str, *, with_progress: bool) -> dict[str, Any]:
    """Whether what each integration with a host replaces there is as it was when that was run."""
    found: list[dict[str, Any]] = []
    for key in HOSTS[host]:
        verdict = seams.examine(seams.WAYS[key])
        way, fits = verdict.way, verdict.problem is None
        line = str(verdict.problem) if verdict.problem else "" if verdict.tried else seams.accepted(verdict)
        found.append({"way": way.name, "package": way.package, "version": verdict.version, "fits": fits, "line": line})
        if with_progress:
            name = f"{way.package} {verdict.version or ''}".rstrip()
            print(f"{'OK  ' if fits else 'FAIL'} {way.name} in {name}", *([line] if line else []), sep="\n     ")
    return {"host": host, "ways": found, "ok": all(way["fits"] for way in found)}


def examine(*, with_progress: bool) -> dict[str, Any]:
    """All findings; with progress each is printed as it is made."""
    import torch

    from fastkto.tools.selfcheck import self_check

    show = print if with_progress else lambda *_: None
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    source = str(origin() or "an index, or a file that is gone")
    found: dict[str, Any] = {
        "versions": versions(),
        "installed from": source,
        "device": describe_device(device),
        "backends": backends(device),
    }
    for name, version in found["versions"].items():
        show(f"{name:<14}{version or 'not installed'}")
        if name == "fastkto":
            show(f"{'':<14}from {found['installed from']}")
    show()
    for name, value in found["device"].items():
        show(f"{name:<14}{value}")
    show("\nbackends of the LM head, the preferred first:")
    for backend in found["backends"]:
        show(f"  {backend['name']:<12}{backend['why']}")
    show("\nhead, loss and gradients against the oracle: error / allowed, where it comes nearest to its bound")
    start, checks = time.monotonic(), []
    for result in self_check(device):
        error = result.error if math.isfinite(result.error) else None  # JSON has no infinity
        checks.append(result._asdict() | {"error": error})
        verdict = "OK  " if result.ok else "FAIL"
        show(f"  {verdict} {result.name:<32}{result.error:.1e} / {result.allowed:.1e}  {result.value}")
    found["checks"], found["ok"] = checks, all(check["ok"] for check in checks)
    show(f"\n{'all OK' if found['ok'] else 'FAILED: do not train here'} ({time.monotonic() - start:.1f} s)")
    return found


def versions() -> dict[str, str | None]:
    """Of Python, this package and what it works with; None for what is not installed."""
    import torch

    installed: dict[str, str | None] = {"python": platform.python_version(), "fastkto": fastkto.__version__}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed | {"torch": torch.__version__}  # which names the build; the package's own version need not


def describe_device(device: Any) -> dict[str, str]:
    """The device that training uses, and the precision that `KTOConfig` chooses on it."""
    import torch

    from fastkto.config import KTOConfig
    from fastkto.tools.selfcheck import usable_dtypes
    from fastkto.trunk import varlen

    if device.type == "cuda":
        each = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = "; ".join(f"{p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB" for p in each)
    elif device.type == "cpu":
        names = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
        if torch.version.cuda is not None:
            names += f"; torch is built for CUDA {torch.version.cuda} and finds no GPU or no driver for it"
    else:
        names = str(torch.accelerator.device_count())
    autocast = KTOConfig(output_dir=None).bf16
    flash = varlen.serves(device)
    return {
        "device": f"{device.type} ({names})",
        "dtypes": ", ".join(str(dtype).removeprefix("torch.") for dtype in usable_dtypes(device)),
        "computes in": "bfloat16 autocast over float32 weights"
        if autocast
        else "float32 (bf16 is off by default here)",
        "packed rows": "flash attention over all of them, in half precision" if flash else "one attention call per row",
    }


def backends(device: Any) -> list[dict[str, Any]]:
    """Each backend of the head: whether "auto" takes it on this device, and why or why not."""
    from fastkto.head.backends import BACKENDS, first_serving

    chosen, found = first_serving(device), []
    for name, backend in BACKENDS.items():
        reason = backend.unavailable(device)
        served = "used: the first that serves this device" if name == chosen else "serves this device too"
        found.append({"name": name, "available": reason is None, "chosen": name == chosen, "why": reason or served})
    return found
