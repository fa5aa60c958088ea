"""Hidden states to the loss and its gradients, beside Liger's class and materialised logits, compared first.

z0 = 0 and a reference of 0, which is what Liger's class computes without its reference model.
"""

import pytest
import torch

from fastkto import fused_linear_kto, kto_loss
from fastkto.integrations.liger import FusedLinearKTOLoss

ROWS, LENGTH, D, V = 8, 64, 576, 49152
BETA = 1e-3  # row log-probs are about -700 nats: the sigmoids stay where they have a slope
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(0)
    x, w = torch.randn(ROWS * LENGTH, D, device=DEVICE), torch.randn(V, D, device=DEVICE).mul_(2 * D**-0.5)
    targets = torch.randint(0, V, (ROWS * LENGTH,), device=DEVICE)
    return x.requires_grad_(), w.requires_grad_(), targets, torch.arange(ROWS, device=DEVICE) % 2 == 0


def fastkto(x, w, targets, labels):
    bounds, zeros = list(range(0, ROWS * LENGTH + 1, LENGTH)), torch.zeros(ROWS, device=DEVICE)
    return fused_linear_kto(x, w, targets, bounds, labels, zeros, beta=BETA, loss_type="apo_zero_unpaired").loss


def fastkto_class(x, w, targets, labels):
    return _class(FusedLinearKTOLoss, x, w, targets, labels)


def liger(x, w, targets, labels):
    package = pytest.importorskip("liger_kernel.chunked_loss", reason="Liger is not installed: fastkto[bench]")
    return _class(package.LigerFusedLinearKTOLoss, x, w, targets, labels)


def _class(kind, x, w, targets, labels):
    loss = kind(beta=BETA, compiled=False, use_ref_model=False)
    kl = torch.zeros((), device=DEVICE)
    return loss(x.view(ROWS, LENGTH, D), w, targets.view(ROWS, LENGTH), preference_labels=labels, kl=kl)[0]


def materialised(x, w, targets, labels):
    logps = (x @ w.T).log_softmax(1).gather(1, targets[:, None])[:, 0].view(ROWS, LENGTH).sum(1)
    return kto_loss(logps, torch.zeros_like(logps), labels, beta=BETA, loss_type="apo_zero_unpaired").loss


@pytest.mark.parametrize("loss", [fastkto, fastkto_class, liger, materialised])
@pytest.mark.benchmark(group="head and loss, forward and backward")
def test_loss(benchmark, inputs, loss):
    x, w, _, _ = inputs

    def both():
        value = loss(*inputs)
        grads = torch.autograd.grad(value, (x, w))
        if x.is_cuda:
            torch.cuda.synchronize()
        return value.detach(), *grads

    expected = materialised(*inputs)
    wanted = expected.detach(), *torch.autograd.grad(expected, (x, w))
    for ours, theirs in zip(both(), wanted, strict=True):
        assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()
    benchmark.pedantic(both, rounds=3, warmup_rounds=1)
