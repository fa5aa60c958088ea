"""The examples run as a reader would run them."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from tiny import tiny_llama, tiny_tokenizer

EXAMPLE = Path(__file__).parent.parent / "examples/plain_pytorch.py"


def losses_and_points(*arguments):
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, EXAMPLE, *arguments], capture_output=True, text=True, timeout=120, env=offline, check=False
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"loss (\S+)  z0 (\S+)", done.stdout)
    return [float(loss) for loss, _ in found], [float(z0) for _, z0 in found]


def test_plain_pytorch_trains_a_tiny_model_offline():
    losses, points = losses_and_points()
    assert len(losses) == 10
    assert losses[0] == 0.5  # the policy is its reference
    assert losses[-1] < 0.4
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert max(points) > 0.1  # the mismatched pairs count


def test_plain_pytorch_trains_the_model_it_is_given(tmp_path):
    torch.manual_seed(0)
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    losses, _ = losses_and_points(tmp_path)
    assert losses[0] == 0.5
    assert losses[-1] < losses[0]
