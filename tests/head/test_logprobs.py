"""The head against the oracle: every backend, ragged shapes, gradients always."""

import pytest
import torch
from heads import CPU, OPTIONS, SERVING, case, compare, poisoned_memory, small_tiles  # noqa: F401 - fixtures
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_close

from fastkto.errors import InputError
from fastkto.head import oracle, token_logprobs, token_stats
from fastkto.head.backends import choose


@pytest.fixture(params=SERVING)
def backend(request):
    return request.param


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 11), (5, 16, 14), (13, 9, 50)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_oracle(backend, shape, dtype, options):
    hidden, weight, targets, bias = case(*shape, dtype=dtype, bias=options["bias"])
    compare(backend, hidden, weight, targets, bias, options["softcap"], options["scale"])


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 17), d=st.integers(1, 9), v=st.integers(1, 40), seed=st.integers(0, 99), ignored=st.integers(0, 17)
)
def test_equals_the_oracle_on_any_shape(n, d, v, seed, ignored):
    for name in SERVING:
        hidden, weight, targets, bias = case(n, d, v, bias=seed % 2 == 0, seed=seed)
        targets[:ignored] = -100
        compare(name, hidden, weight, targets, bias, 3.0 if seed % 3 == 0 else None, 1.5)


@pytest.mark.parametrize("options", OPTIONS)
def test_frozen_weight_forms_the_same_gradient_in_the_forward(backend, options):
    hidden, weight, targets, bias = case(12, 8, 30, bias=options["bias"])
    targets[3] = -100
    frozen, trained = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    kwargs = {"softcap": options["softcap"], "scale": options["scale"], "backend": backend}
    upstream = torch.linspace(-1, 1, 12)
    token_logprobs(frozen, weight, targets, bias=bias, **kwargs).backward(upstream)
    token_logprobs(trained, weight.clone().requires_grad_(), targets, bias=bias, **kwargs).backward(upstream)
    assert weight.grad is None
    assert_close(frozen.grad, trained.grad, name="d hidden")


def test_fp64_gradcheck(backend):
    hidden, weight, targets, bias = case(6, 4, 15, dtype=torch.float64, bias=True)
    targets[2] = -100
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    for function in (oracle.token_logprobs, lambda *a, **k: token_logprobs(*a, **k, backend=backend)):
        assert torch.autograd.gradcheck(
            lambda h, w, b, f=function: f(h, w, targets, bias=b, softcap=4.0, scale=0.5), leaves
        )


@pytest.mark.parametrize("options", OPTIONS)
def test_entropy_and_mean_logit(backend, options):
    hidden, weight, targets, bias = case(11, 6, 23, dtype=torch.float64, bias=options["bias"])
    head = {"softcap": options["softcap"], "scale": options["scale"]}
    stats = token_stats(hidden, weight, targets, bias=bias, backend=backend, **head)
    z = oracle.logits(hidden, weight, bias=bias, **head)
    assert_close(stats.entropy, oracle.token_entropy(z), name="entropy")
    assert_close(stats.mean_logits, z.mean(1), name="mean logit")
    assert torch.equal(stats.logps, token_logprobs(hidden, weight, targets, bias=bias, backend=backend, **head))


@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_large_and_all_negative_logits(backend, shift):
    hidden, weight, targets, _ = case(9, 8, 21, spread=20.0)
    bias = torch.full((21,), shift)
    compare(backend, hidden, weight, targets, bias, None, 1.0)


@pytest.mark.bits
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_bad_position_stays_alone(backend, poison):
    hidden, weight, targets, _ = case(9, 8, 21)
    clean = token_logprobs(hidden, weight, targets, backend=backend)
    hidden[4, 2] = poison
    logps = token_logprobs(hidden.requires_grad_(), weight, targets, backend=backend)
    assert logps[4].isnan()
    others = [i for i in range(9) if i != 4]
    assert torch.equal(logps[others], clean[others])
    logps.sum().backward()
    assert hidden.grad[4].isnan().any()
    assert hidden.grad[others].isfinite().all()


@pytest.mark.parametrize("frozen", [True, False])
def test_nothing_scored_stays_differentiable(backend, frozen):
    for n in (0, 4):
        hidden, weight, _, _ = case(n, 8, 21)
        hidden.requires_grad_()
        weight.requires_grad_(not frozen)
        token_logprobs(hidden, weight, torch.full((n,), -100), backend=backend).sum().backward()
        assert torch.equal(hidden.grad, torch.zeros(n, 8))
        assert frozen or torch.equal(weight.grad, torch.zeros(21, 8))


@pytest.mark.bits
def test_bitwise_reruns_and_retained_graphs(backend):
    hidden, weight, targets, _ = case(17, 8, 50)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    runs = []
    for _ in range(2):
        logps = token_logprobs(*leaves, targets, backend=backend)
        first = torch.autograd.grad(logps.sum(), leaves, retain_graph=True)
        second = torch.autograd.grad(logps.sum(), leaves)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        runs.append((logps, *first))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_autocast_sets_the_gemm_dtype_and_keeps_the_log_probs_in_float32(backend):
    hidden, weight, targets, _ = case(12, 64, 200)
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = token_logprobs(*leaves, targets, backend=backend)
    rounded = oracle.token_logprobs(hidden.bfloat16().double(), weight.bfloat16().double(), targets)
    assert logps.dtype == torch.float32
    assert_close(logps, rounded, name="logps of the rounded operands, not of rounded logits")
    logps.sum().backward()
    assert leaves[0].grad.dtype == leaves[1].grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"hidden": torch.zeros(2, 3, 4)}, "hidden"),
        ({"weight": torch.zeros(5, 3)}, "weight"),
        ({"weight": torch.zeros(5, 4, dtype=torch.int8)}, "weight"),
        ({"bias": torch.zeros(4)}, "bias"),
        ({"targets": torch.zeros(2, dtype=torch.int32)}, "targets"),
        ({"targets": torch.tensor([0, 5, 1])}, "targets"),
        ({"targets": torch.tensor([0, -1, 1])}, "targets"),
        ({"softcap": 0.0}, "softcap"),
        ({"backend": "cutlass"}, "backend"),
    ],
)
def test_bad_arguments_are_named(change, names):
    arguments = {"hidden": torch.zeros(3, 4), "weight": torch.zeros(5, 4), "targets": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(InputError, match=f"^{names}: got .* expected "):
        token_logprobs(**{**arguments, **change})


def test_auto_takes_the_first_backend_that_serves():
    assert choose("auto", CPU).name == SERVING[0]


def test_a_stretch_of_the_vocabulary_that_is_ruled_out(backend):
    """Logits of -inf over whole tiles, as a bias that masks padding tokens gives."""
    hidden, weight, targets, _ = case(9, 8, 30, dtype=torch.float64)
    bias = torch.zeros(30, dtype=torch.float64)
    bias[:16] = -torch.inf
    targets = 16 + targets % 14
    ours = token_logprobs(hidden, weight, targets, bias=bias, backend=backend)
    assert_close(ours, oracle.token_logprobs(hidden, weight, targets, bias=bias))
