"""The LM head beside its peers, each held to float64 first.

pytest benchmarks/micro -o python_files='bench_*.py' -o pythonpath=benchmarks/micro [--benchmark-autosave ...]
"""

import pytest
import torch
from peers import HEADS

N, D, V = 512, 576, 49152
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALLOWED = 1e-5  # mean error of a log-prob, nats


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(0)
    x, w = torch.randn(N, D, device=DEVICE), torch.randn(V, D, device=DEVICE).mul_(2 * D**-0.5)
    targets = torch.randint(0, V, (N,), device=DEVICE)
    exact = (x.double() @ w.double().T).log_softmax(1).gather(1, targets[:, None])[:, 0]
    return x, w, targets, exact


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.benchmark(group="head, forward")
def test_forward(benchmark, inputs, name):
    x, w, targets, exact = inputs
    head = HEADS[name]()

    @torch.no_grad()
    def forward():
        return _finished(head(x, w, targets))

    assert (forward().double() - exact).abs().mean() < ALLOWED
    benchmark.pedantic(forward, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.benchmark(group="head, forward and backward")
def test_backward(benchmark, inputs, name, trained):
    x, w, targets, exact = inputs
    benchmark.group += ", W trained" if trained else ", W frozen"
    head, upstream = HEADS[name](), torch.linspace(1.0, -1.0, N, device=DEVICE)
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_(trained)]
    wanted = leaves if trained else leaves[:1]

    def both():
        logps = head(*leaves, targets)
        return _finished(logps.detach()), torch.autograd.grad((logps * upstream).sum(), wanted)

    logps, grads = both()
    assert (logps.double() - exact).abs().mean() < ALLOWED
    # d logp / dx = w[target] - softmax w
    expected = w[targets] - (x @ w.T).softmax(1) @ w
    distance = (grads[0] - expected * upstream[:, None]).abs().max()
    assert distance < 1e-4 * expected.abs().max()
    benchmark.pedantic(both, rounds=3, warmup_rounds=1)


def _finished(x):
    if x.is_cuda:
        torch.cuda.synchronize()
    return x
