"""The loss behind the head is the same whichever backend forms it, and however the rows are cut into blocks."""

import pytest
import torch
from heads import LOSS, POSITIONAL, SERVING, batch
from tolerance import assert_close

from fastkto.head import oracle
from fastkto.head.backends import BACKENDS
from fastkto.head.backends.native import NativeBackend
from fastkto.head.backends.tiles import TileBackend
from fastkto.head.fused_kto import fused_linear_kto, row_sums


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_sums_and_their_gradient(backend, dtype):
    torch.manual_seed(0)
    x, bounds = torch.randn(40, dtype=dtype, requires_grad=True), [0, 7, 7, 39, 40]
    found = row_sums(x, bounds, backend)
    assert_close(found, oracle.row_sums(x.double(), bounds), oracle.row_sums(x, bounds))
    (found * torch.arange(1, 5)).sum().backward()
    assert torch.equal(x.grad, torch.arange(1, 5).repeat_interleave(torch.tensor([7, 0, 32, 1])).to(dtype))


@pytest.mark.parametrize("backend", SERVING)
def test_a_block_counts_its_rows_from_its_own_start(backend):
    x = torch.randn(30)
    whole = BACKENDS[backend].row_sums(x, [0, 10, 24, 30], None)
    part = BACKENDS[backend].row_sums(x[10:], [10, 24, 30], None)
    assert torch.equal(part.logps_B, whole.logps_B[1:])


@pytest.mark.bits
@pytest.mark.parametrize("backend", SERVING)
def test_the_logged_sums_do_not_depend_on_the_blocks(backend, monkeypatch):
    inputs = batch([4, 1, 9, 3, 2])
    positional, rest = [inputs[k] for k in POSITIONAL], {k: v for k, v in inputs.items() if k not in POSITIONAL}
    positional[0] = positional[0].requires_grad_()
    positional[1] = positional[1].requires_grad_()
    whole = fused_linear_kto(*positional, **rest, **LOSS, backend=backend)
    for kind in (TileBackend, NativeBackend):
        monkeypatch.setattr(kind, "block_bytes", 30 * 4)
    blocks = fused_linear_kto(*positional, **rest, **LOSS, backend=backend)
    for name in ("logps", "rewards", "utilities", "z0", "kl"):
        assert torch.equal(getattr(blocks, name), getattr(whole, name)), name
    assert_close(blocks.class_sums, whole.class_sums.double(), name="class_sums")
    labels = inputs["labels"]
    sums = [x[labels == good].sum() for good in (True, False) for x in (labels | True, whole.rewards, whole.logps)]
    assert_close(whole.class_sums, torch.stack([x.double() for x in sums]), name="class_sums")
