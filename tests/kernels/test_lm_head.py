"""Every head kernel and branch in the interpreter, against the oracle. Tiles there are 16 x 16 x 16 (fold: 8 x 16)."""

import itertools

import fastkto_kernels as fk
import pytest
import torch
from fastkto_kernels import head as head_module
from fastkto_kernels import inputs, matmul
from tolerance import assert_close

from fastkto.head import oracle

ROUTES = [
    ("fused", torch.float32),
    ("fused", torch.bfloat16),
    ("fused", torch.float16),
    ("fold", torch.float64),
    ("fold", torch.float32),
    ("fold", torch.bfloat16),
]
OPTIONS = list(itertools.product((False, True), (None, 5.0), (1.0, 0.25)))


def make(n, d, v, dtype, route, *, bias=False, softcap=None, scale=1.0, seed=0, spread=1.0):
    torch.manual_seed(seed)
    hidden, weight = torch.randn(n, d, dtype=dtype) * spread, torch.randn(v, d, dtype=dtype)
    targets = torch.randint(0, v, (n,))
    if n > 3:
        targets[2] = -100
    b = torch.randn(v, dtype=dtype) if bias else None
    return fk.Head(hidden, weight, targets, b, softcap, scale, plan=fk.plan_for("interpreter", dtype, d, route))


def expected(head, upstream, dtype):
    leaves = [
        None if x is None else x.clone().to(dtype).requires_grad_() for x in (head.hidden, head.weight, head.bias)
    ]
    options = {"softcap": head.softcap, "scale": head.scale}
    logps = oracle.token_logprobs(leaves[0], leaves[1], head.targets, bias=leaves[2], **options)
    logps.backward(upstream.to(logps.dtype))
    with torch.no_grad():
        z = oracle.logits(leaves[0], leaves[1], bias=leaves[2], **options)
    gradients = [None if x is None else x.grad for x in leaves]
    return logps.detach(), oracle.token_entropy(z), z.mean(1), *gradients


def check(head):
    """Forward, both statistics, and the gradients by all three ways."""
    upstream = torch.linspace(-1, 2, head.hidden.shape[0])
    exact, plain = expected(head, upstream, torch.float64), expected(head, upstream, head.hidden.dtype)
    outputs, unit = fk.forward(head, stats=True, unit_dx=True)
    again, _ = fk.forward(head)
    kept_outputs, kept = fk.block_forward(head, stats=True)
    assert torch.equal(outputs.logps, again.logps)
    assert torch.equal(outputs.lse, kept_outputs.lse)
    recomputed = fk.backward(head, outputs.lse, upstream, hidden=True, weight=True, bias=head.bias is not None)
    block = [None if x is None else torch.empty_like(x) for x in (head.hidden, head.weight, head.bias)]
    fk.block_backward(
        head, outputs, kept, upstream, **dict(zip(("dx", "dw", "db"), block, strict=True)), accumulate=False
    )
    found = (outputs.logps, outputs.entropy, outputs.mean_logits)
    for name, *three in zip(("logps", "entropy", "mean logits"), found, exact, plain, strict=False):
        assert_close(*three, name=name)
    for way, gradients in (("recomputed", recomputed), ("kept", block)):
        for name, *three in zip(("hidden", "weight", "bias"), gradients, exact[3:], plain[3:], strict=True):
            if three[0] is not None:
                assert_close(*three, name=f"{way} d {name}")
    assert_close((unit * upstream[:, None]).to(unit.dtype), exact[3], plain[3], name="frozen d hidden")


CASES = [
    (route, dtype, options)
    for route, dtype in ROUTES
    for options in (OPTIONS if dtype == torch.float32 else (OPTIONS[0], OPTIONS[-1]))
]
"""bias, softcap and scale in all combinations in float32; none and all of them in the other dtypes."""


@pytest.mark.parametrize(("route", "dtype", "options"), CASES)
def test_every_route_dtype_and_option(route, dtype, options):
    bias, softcap, scale = options
    depth = 24 if softcap is None else 7  # rows of 16-byte multiples take descriptors, others pointers
    check(make(17, depth, 45, dtype, route, bias=bias, softcap=softcap, scale=scale))


@pytest.mark.parametrize("route", ["fused", "fold"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 576, 33), (16, 16, 32), (35, 8, 99)])
def test_ragged_shapes(shape, route):
    check(make(*shape, torch.float32, route, bias=shape[0] == 16))


@pytest.mark.parametrize("route", ["fused", "fold"])
@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_peaked_and_all_negative_logits(route, shift):
    head = make(9, 8, 40, torch.float32, route, spread=20.0, bias=True)
    head.bias.fill_(shift)
    check(head)


@pytest.mark.parametrize("route", ["fused", "fold"])
def test_forbidden_tokens(route):
    """A bias of -inf over whole tiles and splits: those tokens have probability 0 and no gradient."""
    head = make(6, 8, 80, torch.float32, route, bias=True)
    head.bias[:50] = -torch.inf
    head.targets.clamp_(min=55)
    outputs, unit = fk.forward(head, stats=True, unit_dx=True)
    allowed = slice(50, None)
    exact = oracle.token_logprobs(
        head.hidden.double(), head.weight[allowed].double(), head.targets - 50, bias=head.bias[allowed].double()
    )
    plain = oracle.token_logprobs(head.hidden, head.weight[allowed], head.targets - 50, bias=head.bias[allowed])
    assert_close(outputs.logps, exact, plain)
    z = oracle.logits(head.hidden.double(), head.weight[allowed].double(), bias=head.bias[allowed].double())
    assert_close(outputs.entropy, oracle.token_entropy(z), oracle.token_entropy(z.float()))
    assert unit.isfinite().all()


@pytest.mark.parametrize("route", ["fused", "fold"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_bad_position_stays_alone(route, poison):
    clean = make(20, 8, 40, torch.float32, route)
    reference, unit_reference = fk.forward(clean, stats=True, unit_dx=True)
    clean.hidden[5, 3] = poison
    outputs, unit = fk.forward(clean, stats=True, unit_dx=True)
    gradients = fk.backward(clean, outputs.lse, torch.ones(20), hidden=True, weight=False, bias=False)
    others = [i for i in range(20) if i != 5]
    for bad, good in ((outputs.logps, reference.logps), (outputs.entropy, reference.entropy), (unit, unit_reference)):
        assert bad[5].isnan().any()
        assert torch.equal(bad[others], good[others])
    assert gradients.hidden[5].isnan().any()
    assert gradients.hidden[others].isfinite().all()


@pytest.mark.parametrize("route", ["fused", "fold"])
@pytest.mark.parametrize("n", [0, 5])
def test_nothing_scored(route, n):
    head = make(n, 8, 21, torch.float32, route, bias=True)
    head.targets.fill_(-100)
    outputs, unit = fk.forward(head, stats=True, unit_dx=True)
    gradients = fk.backward(head, outputs.lse, torch.ones(n), hidden=True, weight=True, bias=True)
    assert torch.equal(outputs.logps, torch.zeros(n))
    for found, like in zip((unit, *gradients), (head.hidden, head.hidden, head.weight, head.bias), strict=True):
        assert torch.equal(found, torch.zeros_like(like))


@pytest.mark.parametrize("route", ["fused", "fold"])
def test_a_target_out_of_range_is_nan_and_no_neighbours_logit(route):
    head = make(6, 8, 30, torch.float32, route)
    head.targets[1], head.targets[4] = 30, -7
    outputs, _ = fk.forward(head)
    assert outputs.logps.isnan().tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize("route", ["fused", "fold"])
def test_a_row_has_the_same_bits_in_any_batch(route):
    """The contract behind r = 0: the order of every sum depends on (D, V, dtype) alone."""
    head = make(41, 24, 75, torch.bfloat16, route)
    whole, _ = fk.forward(head, stats=True)
    for part in (slice(0, 1), slice(7, 24), slice(40, 41)):
        alone = fk.Head(head.hidden[part], head.weight, head.targets[part], plan=head.plan)
        found, _ = fk.forward(alone)
        kept, _ = fk.block_forward(alone, stats=True)
        assert torch.equal(found.logps, whole.logps[part])
        assert torch.equal(kept.logps, whole.logps[part])


@pytest.mark.parametrize("route", ["fused", "fold"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_float16_operands_hold_kto_gradients(route, accumulate):
    """They are beta / (4 B) and less, before any loss scale: subnormal numbers of float16, or zero in it."""
    base = make(19, 24, 75, torch.float32, route, bias=True)
    head = fk.Head(base.hidden, base.weight, base.targets, base.bias, compute_dtype=torch.float16, plan=base.plan)
    upstream = torch.linspace(1, 2, 19)
    outputs, _ = fk.forward(head)
    found = []
    for size in (1.0, 1e-7):
        gradients = [torch.zeros_like(x) for x in (head.hidden, head.weight, head.bias)]
        named = dict(zip(("dx", "dw", "db"), gradients, strict=True))
        fk.backward_into(head, outputs.lse, size * upstream, **named, accumulate=accumulate)
        kept_outputs, kept = fk.block_forward(head)
        again = {name: torch.zeros_like(x) for name, x in named.items()}
        fk.block_backward(head, kept_outputs, kept, size * upstream, **again, accumulate=accumulate)
        found.append([x / size for x in (*gradients, *again.values())])
    for large, small in zip(*found, strict=True):
        assert_close(small, large.double(), condition=1e3)  # of float32: operands are rounded alike


@pytest.mark.parametrize("route", ["fused", "fold"])
def test_bits_repeat(route):
    head = make(20, 7, 50, torch.float32, route, bias=True, softcap=5.0)
    runs = []
    for _ in range(2):
        outputs, unit = fk.forward(head, stats=True, unit_dx=True)
        gradients = fk.backward(head, outputs.lse, torch.ones(20), hidden=True, weight=True, bias=True)
        runs.append((*outputs, unit, *gradients))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("route", ["fused", "fold"])
def test_limits_of_memory_change_no_bit_of_the_log_probs(route, monkeypatch):
    """float32 weight, bfloat16 products: slabs, chunks, passes and blocks of a few rows and columns."""
    base = make(19, 8, 75, torch.float32, route, bias=True)
    head = fk.Head(base.hidden, base.weight, base.targets, base.bias, 5.0, 0.5, torch.bfloat16, base.plan)
    upstream = torch.linspace(-1, 2, 19)
    outputs, unit = fk.forward(head, stats=True, unit_dx=True)
    whole = fk.backward(head, outputs.lse, upstream, hidden=True, weight=True, bias=True)
    monkeypatch.setattr(inputs, "SLAB_BYTES", 40 * 8 * 2)
    monkeypatch.setattr(matmul, "ROUND_BYTES", 5 * 8 * 4)
    monkeypatch.setattr(head_module, "CHUNK_BYTES", 19 * 40 * 2)
    monkeypatch.setattr(head_module, "FROZEN_BYTES", 17 * 75 * 2)
    monkeypatch.setattr(head_module, "_pass_positions", lambda head, stats: 16)
    small, small_unit = fk.forward(head, stats=True, unit_dx=True)
    passes, _ = fk.forward(head, stats=True)
    parts = fk.backward(head, small.lse, upstream, hidden=True, weight=True, bias=True)
    for a, b, c in zip(outputs, small, passes, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    for a, b in zip((unit, *whole), (small_unit, *parts), strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert_close(b, a.double())


def test_blocks_add_up():
    head = make(23, 8, 40, torch.float32, "fold", bias=True)
    upstream = torch.linspace(-1, 2, 23)
    outputs, _ = fk.forward(head)
    whole = fk.backward(head, outputs.lse, upstream, hidden=True, weight=True, bias=True)
    dw, db, dx = torch.zeros(40, 8), torch.zeros(40), torch.empty(23, 8)
    for part in (slice(0, 9), slice(9, 23)):
        block = fk.Head(head.hidden[part], head.weight, head.targets[part], head.bias, plan=head.plan)
        found, kept = fk.block_forward(block)
        fk.block_backward(block, found, kept, upstream[part], dx=dx[part], dw=dw, db=db, accumulate=True)
    for found, one in zip((dx, dw, db), whole, strict=True):
        assert_close(found, one.double())


@pytest.mark.parametrize("route", ["fused", "fold"])
def test_any_strides(route):
    head = make(9, 8, 40, torch.float32, route)
    hidden, weight = head.hidden.T.contiguous().T, head.weight.T.contiguous().T
    targets = torch.stack([head.targets, head.targets], 1)[:, 0]
    found, _ = fk.forward(fk.Head(hidden, weight, targets, plan=head.plan))
    assert torch.equal(found.logps, fk.forward(head)[0].logps)
