"""Free pages between live blocks go back to the system, and only where a layer is large and has a graph."""

import platform
import subprocess
import sys

import pytest
from families import family
from packed_steps import LENGTHS, rows

from fastkto.batch import PackingCollator
from fastkto.step.micro_step import row_logps
from fastkto.trunk import ModelRun, heap, layer_split
from fastkto.trunk.scorer import install_scorer

HOLES = """
import torch
from fastkto.trunk import heap

def resident():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

torch.zeros(28 * 2**20, dtype=torch.uint8)  # from now on glibc keeps blocks up to this size in its heap
live, holes = [], []
for _ in range(32):
    holes.append(torch.zeros(8 * 2**20, dtype=torch.uint8))
    live.append(torch.zeros(2**18, dtype=torch.uint8))
holes.clear()
before = resident()
heap.give_back()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_holes_are_given_back():
    freed = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True).stdout
    assert float(freed) > 0.9 * 32 * 8


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap, "_malloc_trim", lambda: None)
    heap.give_back()


@pytest.mark.parametrize(("large", "graph", "calls"), [(1, True, 2 * 2), (1, False, 0), (2**40, True, 0)])
def test_each_pass_of_a_large_layer_with_a_graph(monkeypatch, large, graph, calls):
    model = family("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    install_scorer(model)
    seen = []
    monkeypatch.setattr(layer_split.heap, "give_back", lambda: seen.append(1))
    monkeypatch.setattr(heap, "LARGE", large)
    logps, _ = row_logps(ModelRun(model), PackingCollator(None)(rows(LENGTHS)), graph=graph)
    if graph:
        logps.sum().backward()
    before_the_embedding = 1 if calls else 0
    assert len(seen) == calls * len(model.model.layers) / 2 + before_the_embedding
