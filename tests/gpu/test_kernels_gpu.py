"""The kernels on a GPU. Under a checker, small shapes:

compute-sanitizer --tool memcheck python -m pytest tests/gpu -k small
compute-sanitizer --tool racecheck python -m pytest tests/gpu -k small
"""

import itertools

import fastkto_kernels as fk
import pytest
import torch
from fastkto_kernels.inputs import SLAB_BYTES
from tolerance import assert_close

from fastkto.head import fused_linear_kto, oracle, token_logprobs
from fastkto.step.metrics import step_sums

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


@pytest.mark.parametrize("route", ["fused", "fold"])
def test_weights_cast_slab_by_slab_are_weights_cast_before(route):
    """Under autocast the weights are float32 and the operands bfloat16: the same bits, whatever the slabs."""
    half = make(300, 576, 70_000, torch.bfloat16, route, bias=True)
    assert half.weight.nbytes > 2 * SLAB_BYTES
    options = {"compute_dtype": torch.bfloat16, "plan": half.plan}
    wide = fk.Head(half.hidden.float(), half.weight.float(), half.targets, half.bias.float(), **options)
    upstream = torch.linspace(-1, 2, 300, device="cuda")
    found = []
    for head in (half, wide):
        outputs, unit = fk.forward(head, stats=True, unit_dx=True)
        recomputed = fk.backward(head, outputs.lse, upstream, hidden=True, weight=True, bias=True)
        found.append((*outputs, unit.bfloat16(), *(x.bfloat16() for x in recomputed)))
    for name, a, b in zip(("logps", "lse", "entropy", "mean", "unit", "dx", "dw", "db"), *found, strict=True):
        assert_close(b.bfloat16(), a.double(), a.bfloat16(), name=name)
        assert name not in ("logps", "lse") or torch.equal(a, b), name


def test_log_probs_are_those_of_float32_logits():
    head = make(2048, 1024, 32000, torch.bfloat16)
    outputs, _ = fk.forward(head)
    exact = oracle.token_logprobs(head.hidden.double(), head.weight.double(), head.targets)
    error = outputs.logps.double() - exact
    assert error.abs().mean() < 1e-5
    assert error.mean().abs() < 1e-6


@pytest.mark.parametrize("trained", [False, True])
def test_nothing_waits_for_the_gpu_small(trained):
    """Both streams of the head, the loss and the backward, under a check that raises where the host would wait."""
    head, kl = make(64, 64, 1000, torch.bfloat16), make(40, 64, 1000, torch.bfloat16)
    hidden, weight = head.hidden.requires_grad_(), head.weight.requires_grad_(trained)
    labels, ref = torch.tensor([True, False, True], device="cuda"), torch.full((3,), -150.0, device="cuda")
    pairs = {"kl_hidden": kl.hidden, "kl_targets": kl.targets, "kl_cu_seqlens": [0, 10, 40], "ref_kl_logps": ref[:2]}

    def run():
        for rows, weights in ((None, None), (torch.full((1,), 6.0, device="cuda"), None), (None, -ref)):
            step = {"num_rows": rows, "weights": weights, "stats": True}
            out = fused_linear_kto(hidden, weight, head.targets, [0, 20, 50, 64], labels, ref, **pairs, **step)
            out.loss.backward()
            step_sums(out, {"label": labels, "cu_seqlens": [0, 20, 50, 64], "num_tokens": 64}, None)
        token_logprobs(hidden, weight, head.targets).sum().backward()

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
