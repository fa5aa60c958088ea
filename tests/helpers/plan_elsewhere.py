"""The plan for a device that is not the CPU, which mixes with no tensor that was left there.

`python plan_elsewhere.py` in a process of its own: a device registered in Python stays until the process ends. PyTorch
without CUDA cannot index fake CUDA tensors, and needs no more than this to say where a tensor is.
"""

import sys
from pathlib import Path

import torch
from plans import WAYS, plan_way
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from fastkto.config import KTOConfig
from fastkto.tools import plan


class Backend(_DummyBackendModule):
    """What autocast asks of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


if __name__ == "__main__":
    plan.HOLES_PER_WORK = 0.0  # of a CPU's allocator
    own = KTOConfig.device
    _setup_privateuseone_for_python_backend("elsewhere", Backend())  # before autograd counts its devices
    for way in sorted(WAYS.keys() - {"bf16"}):  # autocast has no kernels for a device registered in Python
        KTOConfig.device = torch.device("elsewhere")
        there = plan_way(Path(sys.argv[1]), way)
        KTOConfig.device = own
        here = plan_way(Path(sys.argv[1]), way)
        print(way, there)
        for part in (plan.WEIGHTS, plan.REFERENCE, plan.OPTIMIZER):
            assert there[part] == here[part], (way, part, there, here)
        assert plan.total(there) > 1.1 * sum(there[part] for part in (plan.WEIGHTS, plan.REFERENCE, plan.OPTIMIZER))
