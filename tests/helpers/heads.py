"""Cases of the head, alone and with the loss: inputs, what both give, and the comparison with the oracle."""

import itertools

import pytest
import torch
from tolerance import assert_close

from fastkto.head import oracle, token_logprobs
from fastkto.head.backends import BACKENDS, products
from fastkto.head.backends.tiles import TileBackend

CPU = torch.device("cpu")
SERVING = [name for name, backend in BACKENDS.items() if backend.unavailable(CPU) is None]
OPTIONS = [
    {"bias": bias, "softcap": softcap, "scale": scale}
    for bias, softcap, scale in itertools.product((False, True), (None, 5.0), (1.0, 0.25))
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles in every direction at test sizes, each tail included."""
    monkeypatch.setitem(products.ROWS, "cpu", 5)
    monkeypatch.setattr(TileBackend, "columns", 7)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Uninitialised memory is NaN: a kernel that reads what it did not write shows."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def case(n, d, v, dtype=torch.float32, bias=False, seed=0, spread=1.0):
    torch.manual_seed(seed)
    hidden = torch.randn(n, d, dtype=dtype) * spread
    weight = torch.randn(v, d, dtype=dtype)
    targets = torch.randint(0, v, (n,))
    return hidden, weight, targets, (torch.randn(v, dtype=dtype) if bias else None)


def gradients(function, inputs, upstream):
    leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(upstream.to(out.dtype))
    return out.detach(), [None if x is None else x.grad for x in leaves]


def compare(backend, hidden, weight, targets, bias, softcap, scale):
    upstream = torch.linspace(-1, 2, hidden.shape[0])

    def ours(h, w, b):
        return token_logprobs(h, w, targets, bias=b, softcap=softcap, scale=scale, backend=backend)

    def reference(h, w, b):
        return oracle.token_logprobs(h, w, targets, bias=b, softcap=softcap, scale=scale)

    inputs = (hidden, weight, bias)
    ours_out, ours_grads = gradients(ours, inputs, upstream)
    torch_out, torch_grads = gradients(reference, inputs, upstream)
    wide = tuple(None if x is None else x.double() for x in inputs)
    oracle_out, oracle_grads = gradients(reference, wide, upstream)
    assert_close(ours_out, oracle_out, torch_out, name="logps")
    for name, g, o, t in zip(("hidden", "weight", "bias"), ours_grads, oracle_grads, torch_grads, strict=True):
        if g is not None:
            assert_close(g, o, t, name=f"d {name}")


def batch(lengths, kl_lengths=None, *, d=8, v=30, dtype=torch.float32, seed=0, bias=False):
    """A micro-batch with k around +1, so that the clamp does not hide z0."""
    torch.manual_seed(seed)
    kl_lengths = lengths[::-1] if kl_lengths is None else kl_lengths

    def stream(sizes):
        bounds = [0]
        for size in sizes:
            bounds.append(bounds[-1] + size)
        return torch.randn(bounds[-1], d, dtype=dtype), torch.randint(0, v, (bounds[-1],)), bounds

    hidden, targets, bounds = stream(lengths)
    kl_hidden, kl_targets, kl_bounds = stream(kl_lengths)
    weight = torch.randn(v, d, dtype=dtype)
    b = torch.randn(v, dtype=dtype) if bias else None
    near = oracle.row_sums(oracle.token_logprobs(hidden, weight, targets, bias=b).double(), bounds)
    kl_near = oracle.row_sums(oracle.token_logprobs(kl_hidden, weight, kl_targets, bias=b).double(), kl_bounds)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "hidden": hidden,
        "weight": weight,
        "targets": targets,
        "cu_seqlens": bounds,
        "labels": torch.arange(len(lengths)) % 3 != 0,
        "ref_logps": (near + torch.randn(len(lengths))).to(wide),
        "kl_hidden": kl_hidden,
        "kl_targets": kl_targets,
        "kl_cu_seqlens": kl_bounds,
        "ref_kl_logps": (kl_near - 1 + 0.1 * torch.randn(len(kl_lengths))).to(wide),
        "bias": b,
    }


LOSS = {"beta": 0.3, "desirable_weight": 1.7, "undesirable_weight": 0.6}


def run(function, inputs, trained, **kwargs):
    inputs = dict(inputs)
    leaves = {name: inputs[name].clone().requires_grad_() for name in trained if inputs[name] is not None}
    inputs.update(leaves)
    out = function(*[inputs.pop(k) for k in POSITIONAL], **inputs, **kwargs)
    (3 * out.loss).backward()
    return out, {name: leaf.grad for name, leaf in leaves.items()}


POSITIONAL = ("hidden", "weight", "targets", "cu_seqlens", "labels", "ref_logps")
TRAINED = (("hidden",), ("hidden", "weight"), ("hidden", "weight", "bias"), ("weight",))
