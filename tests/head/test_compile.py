"""`torch.compile` over a model that ends in the head: no graph break, the gradients of the uncompiled model."""

import pytest
import torch
from tolerance import assert_close
from torch import nn

from fastkto.head import token_stats
from fastkto.head.backends import BACKENDS

CPU = torch.device("cpu")
SERVING = [name for name, backend in BACKENDS.items() if backend.unavailable(CPU) is None]


class Model(nn.Module):
    def __init__(self, backend, *, frozen):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.head, self.backend = nn.Linear(8, 8), nn.Linear(8, 30), backend
        self.head.requires_grad_(not frozen)

    def forward(self, x, targets):
        hidden = torch.tanh(self.trunk(x))
        stats = token_stats(hidden, self.head.weight, targets, bias=self.head.bias, softcap=5.0, backend=self.backend)
        return stats.logps.sum(), stats.entropy.mean()


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_no_graph_break_and_the_same_gradients(backend, frozen, autocast):
    torch._dynamo.reset()
    model = Model(backend, frozen=frozen)
    x, targets = torch.randn(6, 8), torch.randint(0, 30, (6,))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for function in (model, compiled):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss, entropy = function(x, targets)
        loss.backward()
        assert not entropy.requires_grad
        results.append((loss, entropy, *(p.grad.clone() for p in model.parameters() if p.requires_grad)))
    for plain, found in zip(*results, strict=True):
        assert_close(found, plain.double())
