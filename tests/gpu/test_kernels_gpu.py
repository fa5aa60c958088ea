"""The kernels on a GPU. Under a checker, small shapes:

compute-sanitizer --tool memcheck python -m pytest tests/gpu -k small
compute-sanitizer --tool racecheck python -m pytest tests/gpu -k small
"""

import itertools

import fastkto_kernels as fk
import pytest
import torch
from tolerance import assert_close

from fastkto import oracle
from fastkto.backends.base import HeadInputs, Wanted
from fastkto.backends.triton import TritonBackend

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
OPTIONS = list(itertools.product((False, True), (None, 5.0), (1.0, 0.25)))
ROUTES = [
    ("fused", torch.bfloat16),
    ("fused", torch.float16),
    ("fold", torch.bfloat16),
    ("fold", torch.float32),
    ("fold", torch.float64),
]


def make(n, d, v, dtype, route=None, *, bias=False, softcap=None, scale=1.0):
    torch.manual_seed(0)
    hidden = torch.randn(n, d, dtype=dtype, device="cuda")
    weight = torch.randn(v, d, dtype=dtype, device="cuda") * d**-0.5
    targets = torch.randint(0, v, (n,), device="cuda")
    targets[n // 2] = -100
    b = torch.randn(v, dtype=dtype, device="cuda") if bias else None
    plan = fk.plan_for(fk.arch_of(hidden.device), dtype, d, route)
    return fk.Head(hidden, weight, targets, b, softcap, scale, plan=plan)


def expected(head, upstream, dtype):
    leaves = [
        None if x is None else x.clone().to(dtype).requires_grad_() for x in (head.hidden, head.weight, head.bias)
    ]
    options = {"softcap": head.softcap, "scale": head.scale}
    logps = oracle.token_logprobs(leaves[0], leaves[1], head.targets, bias=leaves[2], **options)
    logps.backward(upstream.to(logps.dtype))
    return logps.detach(), *(None if x is None else x.grad for x in leaves)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("route", "dtype"), ROUTES)
@pytest.mark.parametrize("shape", [(77, 96, 1031), (300, 577, 5003)], ids=["small", "ragged"])
def test_equals_the_oracle(shape, route, dtype, options):
    bias, softcap, scale = options
    head = make(*shape, dtype, route, bias=bias, softcap=softcap, scale=scale)
    upstream = torch.linspace(-1, 2, shape[0], device="cuda")
    exact, plain = expected(head, upstream, torch.float64), expected(head, upstream, dtype)
    outputs, unit = fk.forward(head, stats=True, unit_dx=True)
    found, kept = fk.block_forward(head)
    assert torch.equal(outputs.logps, found.logps)
    assert torch.equal(outputs.logps, fk.forward(head)[0].logps)
    block = [None if x is None else torch.empty_like(x) for x in (head.hidden, head.weight, head.bias)]
    fk.block_backward(
        head, found, kept, upstream, **dict(zip(("dx", "dw", "db"), block, strict=True)), accumulate=False
    )
    recomputed = fk.backward(head, outputs.lse, upstream, hidden=True, weight=True, bias=bias)
    assert_close(outputs.logps, exact[0], plain[0], name="logps")
    assert_close((unit * upstream[:, None]).to(dtype), exact[1], plain[1], name="frozen d hidden")
    for way, gradients in (("kept", block), ("recomputed", recomputed)):
        for name, *three in zip(("hidden", "weight", "bias"), gradients, exact[1:], plain[1:], strict=True):
            if three[0] is not None:
                assert_close(*three, name=f"{way} d {name}")


@pytest.mark.parametrize("route", ["fused", "fold"])
def test_a_row_has_the_same_bits_in_any_batch(route):
    head = make(1500, 1024, 32000, torch.bfloat16, route)
    whole, _ = fk.forward(head, stats=True)
    for part in (slice(0, 1), slice(100, 1200), slice(1499, 1500)):
        alone = fk.Head(head.hidden[part], head.weight, head.targets[part], plan=head.plan)
        assert torch.equal(fk.forward(alone)[0].logps, whole.logps[part])
        assert torch.equal(fk.block_forward(alone)[0].logps, whole.logps[part])


def test_log_probs_are_those_of_float32_logits():
    head = make(2048, 1024, 32000, torch.bfloat16)
    outputs, _ = fk.forward(head)
    exact = oracle.token_logprobs(head.hidden.double(), head.weight.double(), head.targets)
    error = outputs.logps.double() - exact
    assert error.abs().mean() < 1e-5
    assert error.mean().abs() < 1e-6


@pytest.mark.parametrize("wanted", [Wanted(True, False, False), Wanted(True, True, False)])
def test_nothing_waits_for_the_gpu_small(wanted):
    head = make(64, 64, 1000, torch.bfloat16)
    given = HeadInputs(head.hidden, head.weight, head.targets, None, None, 1.0, torch.bfloat16)
    backend, bounds = TritonBackend(), [0, 20, 50, 64]
    labels, step = torch.ones(3, dtype=torch.bool, device="cuda"), torch.full((1,), 3.0, device="cuda")
    offsets, ref = torch.tensor(bounds, device="cuda"), torch.zeros(3, device="cuda")

    def run():
        out, _ = backend.forward_backward(
            given, bounds, lambda rows, logps: -0.1 * torch.ones_like(logps), wanted, stats=True
        )
        backend.backward(given, out.lse_N, out.logps_N, wanted)
        rows = fk.row_sums(out.logps_N, offsets, ref)
        return fk.kto_terms(rows, labels, rows.sum_and_count, step, beta=0.1)

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("route", ["fused", "fold"])
def test_a_no_grad_stream_takes_little_memory(route):
    head = make(8192, 512, 128256, torch.bfloat16, route)
    fk.forward(head)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fk.forward(head, stats=True)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 32 << 20


def test_more_logits_than_32_bits_count():
    """N * V past 2^31 in the recomputed and in the kept gradient's tile."""
    head = make(17_000, 64, 128_256, torch.bfloat16, "fused")
    outputs, _ = fk.forward(head)
    last = slice(16_900, 17_000)
    exact = oracle.token_logprobs(head.hidden[last].double(), head.weight.double(), head.targets[last])
    plain = oracle.token_logprobs(head.hidden[last], head.weight, head.targets[last])
    assert_close(outputs.logps[last], exact, plain)
    found, kept = fk.block_forward(head)
    dx = torch.empty_like(head.hidden)
    fk.block_backward(head, found, kept, torch.ones_like(found.lse), dx=dx, dw=None, db=None, accumulate=False)
    again = fk.backward(head, outputs.lse, torch.ones_like(outputs.lse), hidden=True, weight=False, bias=False)
    assert (dx[last].double() - again.hidden[last].double()).norm() < 1e-2 * dx[last].double().norm()
