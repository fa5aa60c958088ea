"""Registers, spills and shared memory of every kernel and tile, compiled without a GPU.

    python benchmarks/compile_table.py [--triton DIR_OF_ANOTHER_TRITON ...]

Records the launches of the kernels' own host code on meta tensors, compiles each for every architecture, and reads
the machine code with the `cuobjdump` of the triton package. Writes `benchmarks/results/compile_table.{json,md}`.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ARCHITECTURES = (80, 89, 90, 100, 120)
SHARED_LIMIT = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB that one program may take."""
MMA = re.compile(r"\b(HGMMA|HMMA|UTCHMMA|UTCMMA|DMMA)\b")
RESULTS = Path(__file__).parent / "results"
DTYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.bool: "i1",
}


def launches(arch: int, dtype: torch.dtype, depth: int, *, variants: bool) -> list[tuple[Any, tuple, dict]]:
    """(kernel, arguments, options) of every launch of both routes; `variants` adds bias, softcap and statistics."""
    import fastkto_kernels as fk
    from fastkto_kernels import combine, fold, fused, gradient, kto, matmul, produce

    calls: list[tuple[Any, tuple, dict]] = []
    modules: list[ModuleType] = [combine, fold, fused, gradient, kto]
    original = combine.launch
    for module in modules:
        vars(module)["launch"] = lambda kernel, programs, device, *args, **options: calls.append(
            (kernel, args, options)
        )
    try:
        for route in ("fused", "fold"):
            if route == "fused" and dtype.itemsize > 2:
                continue
            plan = fk.plan_for(f"sm_{arch}", dtype, depth, route)
            for extras in (False, True) if variants else (False,):
                x, w = (torch.empty(n, depth, dtype=dtype, device="meta") for n in (4096, 49152))
                targets = torch.empty(4096, dtype=torch.int64, device="meta")
                bias = torch.empty(49152, dtype=dtype, device="meta") if extras else None
                one = fk.Head(x, w, targets, bias, 30.0 if extras else None, 0.5 if extras else 1.0, plan=plan)
                for kept in (None, produce.empty_kept(one)):
                    outputs = fk.Outputs.empty(4096, x, matmul.sum_dtype(dtype), stats=extras)
                    produce.score(one, outputs, kept)
                    if kept is not None:
                        gradient.kept_gradient(
                            kept, targets, outputs, 49152, scale=one.scale, softcap=one.softcap, plan=plan
                        )
                fk.backward(one, outputs.lse, outputs.logps, hidden=True, weight=True, bias=extras)
        if dtype == torch.bfloat16 and depth == min(depths(arch)):
            logps, ref = torch.empty(4096, device="meta"), torch.empty(16, device="meta")
            rows = fk.row_sums(logps, torch.empty(17, dtype=torch.int64, device="meta"), ref)
            labels = torch.empty(16, dtype=torch.bool, device="meta")
            for weights in (None, ref):
                fk.kto_terms(rows, labels, rows.sum_and_count, ref[:1], weights, beta=0.1)
    finally:
        for module in modules:
            vars(module)["launch"] = original
    return calls


def depths(arch: int) -> list[int]:
    """One D for each tile of the table, and one whose rows no descriptor can take."""
    from fastkto_kernels.table import TILES

    limits = [limit for limit, _ in TILES[f"sm_{arch}"]]
    return [*(min(limit - 1, 4096) // 64 * 64 for limit in limits), 577]


def signature(kernel: Any, args: tuple, options: dict) -> tuple[dict, dict, dict, dict]:
    """(types, constants, attributes, compile options) as the launcher would specialise them."""
    types: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list] = {}
    settings = {key: value for key, value in options.items() if key.startswith("num_")}
    values = dict(zip(kernel.arg_names, args, strict=False)) | options
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        aligned = False
        one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or one:
            types[parameter.name], constants[(index,)] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            types[parameter.name] = "*" + DTYPES[value.dtype]
            aligned = not parameter.do_not_specialize_on_alignment
        else:
            types[parameter.name] = "i32" if value < 1 << 31 else "i64"
            aligned = not parameter.do_not_specialize and value % 16 == 0
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return types, constants, attributes, settings


def describe(kernel: Any, args: tuple, options: dict, arch: int) -> dict[str, Any]:
    """Compile one launch and read its machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants, attributes, settings = signature(kernel, args, options)
    source = ASTSource(kernel, types, constants, attributes)
    settings["enable_fp_fusion"] = False
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=settings)
    named = {kernel.arg_names[index]: value for (index,), value in constants.items()}
    pointers = {name: kind for name, kind in types.items() if kind.startswith("*")}
    record = {
        "arch": arch,
        "triton": triton.__version__,
        "kernel": kernel.__name__,
        "dtype": next(iter(pointers.values()))[1:],
        "tile": "x".join(str(named[k]) for k in ("ROWS", "COLUMNS", "DEPTH", "TILES", "WIDTH", "BLOCK") if k in named),
        "warps": settings.get("num_warps", 4),
        "stages": settings.get("num_stages", 3),
        "with": [name for name in ("bias", "weighted", "kept", "weights") if name in pointers]
        + [name.lower() for name in ("SOFTCAP", "DESCRIPTORS") if named.get(name)],
        "shared_KiB": round(binary.metadata.shared / 1024, 1),
    }
    return record | read_machine_code(binary.asm["cubin"])


def read_machine_code(cubin: bytes) -> dict[str, Any]:
    """Registers, local memory accesses, those inside loops that hold an MMA, and instruction names."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([tool, flag, file.name], check=True, capture_output=True, text=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    code = [(int(a, 16), text) for a, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", sass)]
    local = [address for address, text in code if re.search(r"\b(LDL|STL)\b", text)]
    mma = [address for address, text in code if MMA.search(text)]
    loops = [
        (int(target, 16), address)
        for address, text in code
        for target in re.findall(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if int(target, 16) < address
    ]
    loops = [one for one in loops if not any(other[0] < one[0] < other[1] < one[1] for other in loops)]  # far blocks
    holding = [(a, b) for a, b in loops if any(a <= m <= b for m in mma)]
    inner = [one for one in holding if not any(one != other and _within(other, one) for other in holding)]
    names = {text.removeprefix(text.split()[0]).strip() if text.startswith("@") else text for _, text in code}
    mnemonics = {name.split(".")[0].split()[0] for name in names}
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[0]),
        "spills": len(local),
        "spills_beside_mma": sum(any(a <= x <= b for a, b in inner) for x in local),
        "mma_loops": len(inner),
        "instructions": sorted(mnemonics & {"HGMMA", "HMMA", "UTCHMMA", "UTMALDG", "UBLKCP", "LDGSTS", "FFMA"}),
    }


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def records(arches: tuple[int, ...], *, quick: bool) -> Iterator[dict[str, Any]]:
    """Every distinct compilation; `quick` takes bfloat16 and the largest tile only."""
    for arch in arches:
        seen = set()
        dtypes = (torch.bfloat16,) if quick else (torch.bfloat16, torch.float16, torch.float32, torch.float64)
        for dtype in dtypes:
            for depth in depths(arch)[-2:-1] if quick else depths(arch):
                full = dtype == torch.bfloat16
                if not full and depth != depths(arch)[-2]:
                    continue
                for kernel, args, options in launches(arch, dtype, depth, variants=full):
                    key = repr((kernel.__name__, signature(kernel, args, options)))
                    if key not in seen:
                        seen.add(key)
                        yield describe(kernel, args, options, arch)


def faults(record: dict[str, Any]) -> list[str]:
    """What is wrong with a compiled kernel: nothing, if the table may be trusted."""
    found = []
    if record["spills_beside_mma"]:
        found.append("local memory inside the loop that holds the MMA")
    if record["shared_KiB"] > SHARED_LIMIT[record["arch"]]:
        found.append(f"{record['shared_KiB']} KiB of shared memory, the limit is {SHARED_LIMIT[record['arch']]}")
    if record["kernel"] in ("forward_kernel", "gradient_kernel"):
        if not record["mma_loops"]:
            found.append("no loop holds an MMA")
        if record["arch"] == 90 and "HGMMA" not in record["instructions"]:
            found.append("no HGMMA")
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as committed."""
    keys = ["arch", "triton", "kernel", "dtype", "tile", "warps", "stages", "with", "registers", "spills"]
    keys += ["spills_beside_mma", "shared_KiB", "instructions"]
    lines = ["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
    for row in rows:
        cells = (" ".join(row[key]) if isinstance(row[key], list) else str(row[key]) for key in keys)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def worker(arches: str, quick: str) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
    for record in records(tuple(int(a) for a in arches.split(",")), quick=quick == "quick"):
        print(json.dumps(record), flush=True)


@functools.cache
def run(triton: str | None, arches: tuple[int, ...] = ARCHITECTURES, *, quick: bool = False) -> list[dict[str, Any]]:
    """The records under another triton (a `pip install --target` folder), or this one's, in a fresh process."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if triton is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (triton, environment.get("PYTHONPATH"))))
    command = [sys.executable, __file__, "--worker", ",".join(map(str, arches)), "quick" if quick else "all"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", action="append", default=[], help="folder of a further triton")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worker", nargs=2, metavar=("ARCHES", "EXTENT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
        return
    rows = [row for path in (None, *arguments.triton) for row in run(path, quick=arguments.quick)]
    print(markdown(rows))
    wrong = [(row, fault) for row in rows for fault in faults(row)]
    for row, fault in wrong:
        print(f"FAULT sm_{row['arch']} triton {row['triton']} {row['kernel']} {row['tile']} {row['with']}: {fault}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "compile_table.json").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    (RESULTS / "compile_table.md").write_text(markdown(rows))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
