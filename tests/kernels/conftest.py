"""These tests run the kernels in Triton's interpreter, which is chosen once, when a kernel is defined.

`tests/test_kernels.py` starts them in a process of their own; here they are left out unless that process is this one.
"""

import os

import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Uninitialised memory is NaN: a kernel that reads what it did not write shows."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
