"""Head and loss in one against the oracle, block sizes and streams of all kinds."""

import pytest
import torch
from heads import LOSS, POSITIONAL, SERVING, TRAINED, batch, poisoned_memory, run, small_tiles  # noqa: F401 - fixtures
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_close

from fastkto.errors import InputError
from fastkto.head import fused_linear_kto, oracle
from fastkto.head.backends.native import NativeBackend
from fastkto.head.backends.tiles import TileBackend


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("block_positions", [1, 6, 1000])
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_equals_the_oracle(monkeypatch, backend, trained, block_positions, loss_type):
    for kind in (TileBackend, NativeBackend):
        monkeypatch.setattr(kind, "block_bytes", block_positions * 30 * 4)
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


WEIGHTS = torch.tensor([0.2, 3.0, 0.0, 1.0, 0.7])


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("trained", [("hidden",), ("hidden", "weight", "bias")])
@pytest.mark.parametrize("block_positions", [6, 1000])
def test_weighted_rows_equal_the_oracle(monkeypatch, backend, trained, block_positions):
    for kind in (TileBackend, NativeBackend):
        monkeypatch.setattr(kind, "block_bytes", block_positions * 30 * 4)
    inputs = batch([4, 1, 9, 3, 2], bias=True)
    ours, grads = run(fused_linear_kto, inputs, trained, backend=backend, weights=WEIGHTS, **LOSS)
    theirs, torch_grads = run(oracle.linear_kto, inputs, trained, weights=WEIGHTS, **LOSS)
    wide = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    exact, oracle_grads = run(oracle.linear_kto, wide, trained, weights=WEIGHTS.double(), **LOSS)
    plain, _ = run(oracle.linear_kto, wide, trained, **LOSS)
    assert exact.z0 == plain.z0 > 0.1
    assert abs(exact.loss - plain.loss) > 0.01
    for name in ("loss", "z0", "utilities"):
        assert_close(getattr(ours, name), getattr(exact, name), getattr(theirs, name), name=name)
    for name, grad in grads.items():
        assert_close(grad, oracle_grads[name], torch_grads[name], name=f"d {name}")


@pytest.mark.bits
@pytest.mark.parametrize("backend", SERVING)
def test_weights_of_one_change_no_bit_and_weights_of_zero_give_no_nan(backend):
    inputs = batch([4, 1, 9, 3, 2])
    (plain, grads), (ones, same), (zeros, none) = (
        run(fused_linear_kto, inputs, ("hidden", "weight"), backend=backend, weights=weights, **LOSS)
        for weights in (None, torch.ones(1).expand(5), torch.zeros(5))
    )
    assert torch.equal(ones.loss, plain.loss)
    assert zeros.loss == 0
    for name, grad in grads.items():
        assert torch.equal(same[name], grad), name
        assert not none[name].any(), name


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
        ({"weights": torch.ones(2)}, "weights"),
        ({"weights": torch.tensor([1.0, -1.0, 0.0])}, "weights"),
    ],
)
def test_bad_arguments_are_named(change, names):
    inputs = {**batch([4, 1, 9]), **change}
    with pytest.raises(InputError, match=f"^{names}: got .* expected "):
        fused_linear_kto(*[inputs.pop(k) for k in POSITIONAL], **inputs)
