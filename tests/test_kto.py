"""Head and loss in one against the oracle, block sizes and streams of all kinds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_head import SERVING, poisoned_memory, small_tiles  # noqa: F401 - fixtures
from tolerance import assert_close

from fastkto import oracle
from fastkto.backends.tiles import TileBackend
from fastkto.errors import InputError
from fastkto.kto import fused_linear_kto


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


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("block_positions", [1, 6, 1000])
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_equals_the_oracle(monkeypatch, backend, trained, block_positions, loss_type):
    monkeypatch.setattr(TileBackend, "block_bytes", block_positions * 30 * 4)
    inputs = batch([4, 1, 9, 3, 2], bias="bias" in trained)
    kwargs = {**LOSS, "loss_type": loss_type, "softcap": 6.0, "scale": 0.8}
    ours, grads = run(fused_linear_kto, inputs, trained, backend=backend, **kwargs)
    theirs, torch_grads = run(oracle.linear_kto, inputs, trained, **kwargs)
    wide = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    exact, oracle_grads = run(oracle.linear_kto, wide, trained, **kwargs)
    for name in ("loss", "rewards", "z0", "kl", "utilities"):
        assert_close(getattr(ours, name), getattr(exact, name), getattr(theirs, name), name=name)
    assert loss_type == "apo_zero_unpaired" or exact.z0 > 0.1
    for name, grad in grads.items():
        assert_close(grad, oracle_grads[name], torch_grads[name], name=f"d {name}")


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6), block=st.integers(1, 40), seed=st.integers(0, 99))
def test_equals_the_oracle_on_any_lengths(lengths, block, seed):
    """The oracle's loss and gradients at our log-ratios: rounding of long sums is compared apart, in logps and kl."""
    inputs = batch(lengths, seed=seed, dtype=torch.float64)
    logps, kl_logps = (
        oracle.row_sums(
            oracle.token_logprobs(inputs[f"{kl}hidden"], inputs["weight"], inputs[f"{kl}targets"]),
            inputs[f"{kl}cu_seqlens"],
        )
        for kl in ("", "kl_")
    )
    for backend in SERVING:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TileBackend, "block_bytes", block * 30 * 8)
            ours, grads = run(fused_linear_kto, inputs, ("hidden", "weight"), backend=backend, **LOSS)
        assert_close(ours.logps, logps, name="logps")
        assert_close(ours.kl + inputs["ref_kl_logps"], kl_logps, name="KL logps")
        at_ours = {"ref_logps": logps - ours.rewards / LOSS["beta"], "ref_kl_logps": kl_logps - ours.kl}
        same, oracle_grads = run(oracle.linear_kto, {**inputs, **at_ours}, ("hidden", "weight"), **LOSS)
        condition = 1 + same.utilities.abs().max().item()  # loss and gradient are functions of exp(u)
        assert_close(ours.loss, same.loss, name="loss", condition=condition)
        for name, grad in grads.items():
            assert_close(grad, oracle_grads[name], name=f"d {name}", condition=condition)


@pytest.mark.parametrize("backend", SERVING)
def test_statistics_and_evaluation_without_a_graph(backend):
    inputs = batch([4, 1, 9], dtype=torch.float64)
    positional = [inputs.pop(k) for k in POSITIONAL]
    with torch.no_grad():
        out = fused_linear_kto(*positional, **inputs, stats=True, backend=backend, **LOSS)
        z = oracle.logits(positional[0], positional[1])
    trained = fused_linear_kto(
        positional[0].requires_grad_(), *positional[1:], **inputs, stats=True, backend=backend, **LOSS
    )
    for result in (out, trained):
        assert_close(result.entropy, oracle.token_entropy(z), name="entropy")
        assert_close(result.mean_logits, z.mean(1), name="mean logits")
    assert torch.equal(out.loss, trained.loss)
    assert not out.loss.requires_grad
    assert trained.loss.requires_grad


def test_mean_over_the_rows_of_the_whole_step():
    """Two unequal micro-batches with one num_rows add up to eq. (6) over all rows."""
    parts = [batch([4, 1], seed=1, dtype=torch.float64), batch([2, 3, 5], seed=2, dtype=torch.float64)]
    total = torch.zeros((), dtype=torch.float64)
    by_hand = torch.zeros((), dtype=torch.float64)
    for part in parts:
        positional = [part[k] for k in POSITIONAL]
        rest = {k: v for k, v in part.items() if k not in POSITIONAL}
        total += fused_linear_kto(*positional, **rest, num_rows=torch.tensor(5), **LOSS).loss
        by_hand += oracle.linear_kto(*positional, **rest, **LOSS).loss * len(part["labels"]) / 5
    assert_close(total, by_hand)


def test_retained_graph_gives_the_same_gradient_again():
    inputs = batch([4, 1, 9])
    inputs["hidden"].requires_grad_()
    inputs["weight"].requires_grad_()
    leaves = [inputs["hidden"], inputs["weight"]]
    out = fused_linear_kto(*[inputs.pop(k) for k in POSITIONAL], **inputs)
    first = torch.autograd.grad(out.loss, leaves, retain_graph=True)
    second = torch.autograd.grad(2 * out.loss, leaves)
    assert all(torch.equal(2 * a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.bits
def test_policy_equal_to_the_live_reference_is_exactly_at_the_start():
    inputs = batch([4, 1, 9, 70])
    score = {k: inputs[k] for k in ("kl_hidden", "kl_targets", "kl_cu_seqlens")}
    zeros = torch.zeros(4)
    first = fused_linear_kto(*(inputs[k] for k in POSITIONAL), **score, ref_kl_logps=zeros)
    inputs["ref_logps"] = first.logps
    again = fused_linear_kto(*(inputs[k] for k in POSITIONAL), **score, ref_kl_logps=first.kl, **LOSS)
    assert torch.equal(again.rewards, zeros)
    assert torch.equal(again.kl, zeros)
    weights = torch.where(inputs["labels"], LOSS["desirable_weight"], LOSS["undesirable_weight"])
    assert_close(again.loss, (weights / 2).mean().double())


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"cu_seqlens": [0, 4, 5]}, "cu_seqlens"),
        ({"cu_seqlens": [0, 9, 5, 14]}, "cu_seqlens"),
        ({"kl_cu_seqlens": [1, 14]}, "kl_cu_seqlens"),
        ({"labels": torch.tensor([1, 0, 1])}, "labels"),
        ({"labels": torch.tensor([True, False])}, "labels"),
        ({"ref_logps": torch.zeros(2)}, "ref_logps"),
        ({"ref_kl_logps": None}, "kl_logps and ref_kl_logps"),
        ({"ref_kl_logps": torch.zeros(2)}, "ref_kl_logps"),
        ({"beta": 0.0}, "beta"),
        ({"loss_type": "dpo"}, "loss_type"),
    ],
)
def test_bad_arguments_are_named(change, names):
    inputs = {**batch([4, 1, 9]), **change}
    with pytest.raises(InputError, match=f"^{names}: got .* expected "):
        fused_linear_kto(*[inputs.pop(k) for k in POSITIONAL], **inputs)
