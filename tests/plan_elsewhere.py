"""The plan for a device that is not the CPU, which mixes with no tensor that was left there.

`python plan_elsewhere.py` in a process of its own: a device registered in Python stays until the process ends. PyTorch
without CUDA cannot index fake CUDA tensors, and needs no more than this to say where a tensor is.
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig
from test_plan import LENGTHS, LORA, SIZES
from tiny import tiny_llama
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from training import config

from fastkto import plan
from fastkto.config import KTOConfig
from fastkto.plan import Model, peak_by_part

WAYS = {
    "full": {},
    "adapter": {"peft_config": LORA},
    "cached": {"precompute_ref_log_probs": True},
    "padded": {"packing": False},
    "two forwards": {"max_tokens_per_forward": 400},
    "accumulated": {"gradient_accumulation_steps": 2},
}


class Backend(_DummyBackendModule):
    """What autocast asks of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def parts(folder: Path, changes: dict) -> dict[str, int]:
    """Of one way, on the device that `KTOConfig.device` says."""
    lora = LoraConfig(**changes["peft_config"]) if "peft_config" in changes else None
    known = Model(tiny_llama(**SIZES).config, torch.float32, lora)
    rest = {name: value for name, value in changes.items() if name != "peft_config"}
    return peak_by_part(known, config(folder, **rest), LENGTHS)


if __name__ == "__main__":
    plan.HOLES_PER_WORK = 0.0  # of a CPU's allocator
    own = KTOConfig.device
    _setup_privateuseone_for_python_backend("elsewhere", Backend())  # before autograd counts its devices
    for way, changes in WAYS.items():
        KTOConfig.device = torch.device("elsewhere")
        there = parts(Path(sys.argv[1]), changes)
        KTOConfig.device = own
        here = parts(Path(sys.argv[1]), changes)
        print(way, there)
        for part in (plan.WEIGHTS, plan.REFERENCE, plan.OPTIMIZER):
            assert there[part] == here[part], (way, part, there, here)
        assert plan.total(there) > 1.1 * sum(there[part] for part in (plan.WEIGHTS, plan.REFERENCE, plan.OPTIMIZER))
