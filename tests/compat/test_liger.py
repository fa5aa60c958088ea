"""`FusedLinearKTOLoss` beside the class that it replaces, from the installed liger-kernel."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from tolerance import assert_close

from fastkto.errors import InputError
from fastkto.integrations.liger import FusedLinearKTOLoss
from fastkto.integrations.seams import require_seams

METRICS = (
    "chosen_logps_sum",
    "rejected_logps_sum",
    "chosen_logits_sum",
    "rejected_logits_sum",
    "chosen_rewards_sum",
    "rejected_rewards_sum",
)
TRAINED = ("_input", "lin_weight", "bias")


@pytest.fixture(scope="module")
def liger():
    chunked_loss = pytest.importorskip("liger_kernel.chunked_loss", reason="compares with the installed liger-kernel")
    require_seams("liger")
    return chunked_loss.LigerFusedLinearKTOLoss


def batch(*, dtype=torch.float32, bias=True, ignore_index=-100, rows=5, length=9, seed=0):
    """Rows with a prompt and padding that are not scored, one with a hole, one that fills its length."""
    torch.manual_seed(seed)
    d, v = 16, 70
    target = torch.randint(0, v, (rows, length))
    target[0, :4] = ignore_index
    target[1, 6:] = ignore_index
    target[2, [0, 3, 8]] = ignore_index
    if rows > 4:
        target[4, 1:] = ignore_index
    hidden, weight = torch.randn(rows, length, d), torch.randn(v, d)
    inputs = {
        "_input": hidden,
        "lin_weight": weight,
        "bias": torch.randn(v) if bias else None,
        "ref_input": hidden + 0.1 * torch.randn_like(hidden),
        "ref_weight": weight + 0.1 * torch.randn_like(weight),
        "ref_bias": torch.randn(v) if bias else None,
        "kl": torch.tensor(1.3),
    }
    inputs = {name: None if x is None else x.to(dtype) for name, x in inputs.items()}
    return inputs | {"target": target, "preference_labels": torch.arange(rows) % 3 != 1}


def run(loss_class, inputs, *, upstream=3.0, trained=TRAINED, ref_logps=None, **settings):
    """Loss, the six sums and the gradients of `upstream * loss`."""
    leaves = {n: inputs[n].clone().requires_grad_() for n in trained if inputs[n] is not None}
    extra = {} if ref_logps is None else {"ref_logps": ref_logps}
    loss, sums = loss_class(compiled=False, **settings)(**{**inputs, **leaves}, **extra)
    (upstream * loss).backward()
    assert isinstance(sums, tuple)
    values = {"loss": loss.detach()} | dict(zip(METRICS, sums, strict=True))
    return values | {f"d {name}": leaf.grad for name, leaf in leaves.items()}


def plain(
    inputs,
    *,
    use_ref_model=False,
    average_log_prob=False,
    ignore_index=-100,
    beta=0.1,
    weights=(1, 1),
    dtype=torch.float64,
):
    """The same with logits; in float64 the oracle."""
    wide = {n: x.to(dtype) if x is not None and x.is_floating_point() else x for n, x in inputs.items()}
    leaves = {n: wide[n].clone().requires_grad_() for n in TRAINED if wide[n] is not None}
    wide = wide | leaves
    scored = wide["target"] != ignore_index

    def logps_of(hidden, weight, bias):
        z = hidden @ weight.T + (0 if bias is None else bias)
        tokens = z.log_softmax(-1).gather(-1, wide["target"].masked_fill(~scored, 0)[..., None])[..., 0] * scored
        return z, tokens.sum(1) / (scored.sum(1) if average_log_prob else 1)

    z, logps = logps_of(wide["_input"], wide["lin_weight"], wide["bias"])
    ref = torch.zeros_like(logps)
    if use_ref_model:
        ref = logps_of(wide["ref_input"], wide["ref_weight"], wide["ref_bias"])[1]
    labels = wide["preference_labels"]
    u = beta * (logps - ref - (0 if wide["kl"] is None else wide["kl"])) * torch.where(labels, 1, -1)
    loss = (torch.where(labels, *map(torch.tensor, weights)) * (1 - u.sigmoid())).sum() / len(labels)
    (3 * loss).backward()
    sums = [x.detach()[mask].sum() for x in (logps, z, beta * (logps - ref)) for mask in (labels, ~labels)]
    values = {"loss": loss.detach()} | dict(zip(METRICS, sums, strict=True))
    for name, mask in (("chosen_rewards_sum", labels), ("rejected_rewards_sum", ~labels)):
        terms = beta * (logps.abs() + ref.abs())[mask].sum()  # which cancel in the rewards
        values[f"condition of {name}"] = max(1.0, (terms / values[name].abs().clamp(min=1e-3)).item())
    return values | {f"d {name}": leaf.grad for name, leaf in leaves.items()}


def assert_same(ours, theirs, exact):
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        condition = exact.get(f"condition of {name}", 1.0)
        assert_close(value, exact[name], theirs[name], name=name, condition=condition)


def test_constructor_and_call_are_the_same_and_end_in_ours(liger):
    for ours, theirs, added in (
        (FusedLinearKTOLoss.__init__, liger.__init__, ["desirable_weight", "undesirable_weight"]),
        (FusedLinearKTOLoss.forward, liger.forward, ["ref_logps"]),
    ):
        mine, host = (list(inspect.signature(f).parameters.values()) for f in (ours, theirs))
        shared = mine[: len(host)]
        assert [(p.name, p.default, p.kind) for p in shared] == [(p.name, p.default, p.kind) for p in host]
        assert [p.name for p in mine[len(host) :]] == added
        assert all(p.kind is p.KEYWORD_ONLY for p in mine[len(host) :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("use_ref_model", [True, False])
@pytest.mark.parametrize("average_log_prob", [True, False])
def test_equals_liger(liger, dtype, bias, use_ref_model, average_log_prob):
    inputs = batch(dtype=dtype, bias=bias)
    settings = {"use_ref_model": use_ref_model, "average_log_prob": average_log_prob, "beta": 0.2}
    exact = plain(inputs, **settings)
    assert 0.05 < exact["loss"] < 0.95
    assert_same(run(FusedLinearKTOLoss, inputs, **settings), run(liger, inputs, **settings), exact)


@pytest.mark.parametrize("kl", [None, torch.tensor(-0.7), torch.tensor([2.0]), 0.4])
def test_the_reference_point_is_taken_as_it_is(liger, kl):
    """Neither clamped nor differentiated, one number of any shape or none."""
    inputs = batch() | {"kl": kl}
    exact = plain(inputs | {"kl": None if kl is None else torch.as_tensor(kl)}, use_ref_model=True)
    assert_same(run(FusedLinearKTOLoss, inputs, use_ref_model=True), run(liger, inputs, use_ref_model=True), exact)


def test_another_ignore_index_and_labels_of_one_kind(liger):
    inputs = batch(ignore_index=69)
    for labels in (inputs["preference_labels"], torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)):
        inputs["preference_labels"] = labels
        settings = {"ignore_index": 69, "use_ref_model": True}
        assert_same(
            run(FusedLinearKTOLoss, inputs, **settings), run(liger, inputs, **settings), plain(inputs, **settings)
        )


def test_rows_without_a_scored_token_count_and_move_nothing(liger):
    inputs = batch(rows=4)
    inputs["target"][3] = -100
    ours, theirs = (run(each, inputs, use_ref_model=True) for each in (FusedLinearKTOLoss, liger))
    assert_same(ours, theirs, plain(inputs, use_ref_model=True))
    assert not ours["d _input"][3].any()
    inputs["target"][:] = -100
    ours, theirs = (run(each, inputs, use_ref_model=True) for each in (FusedLinearKTOLoss, liger))
    assert_same(ours, theirs, plain(inputs, use_ref_model=True))


def test_a_slice_of_hidden_states_as_hosts_pass_it(liger):
    inputs = batch(length=10)
    whole = {n: x[:, :-1] if n in ("_input", "ref_input", "target") else x for n, x in inputs.items()}
    assert not whole["_input"].is_contiguous()
    ours, theirs = (run(each, whole, use_ref_model=True) for each in (FusedLinearKTOLoss, liger))
    assert_same(ours, theirs, plain(whole, use_ref_model=True))


def test_only_wanted_gradients_are_made(liger):
    inputs = batch()
    ours, theirs = (run(each, inputs, trained=("_input",), use_ref_model=True) for each in (FusedLinearKTOLoss, liger))
    assert_same(ours, theirs, plain(inputs, use_ref_model=True))


def test_the_sums_carry_no_graph():
    inputs = batch()
    inputs["_input"].requires_grad_()
    loss, sums = FusedLinearKTOLoss(use_ref_model=True)(**inputs)
    assert loss.requires_grad
    assert not any(x.requires_grad for x in sums)


@pytest.mark.parametrize("chunk_size", [2, 5])
def test_chunks_of_several_rows_change_nothing(liger, chunk_size):
    inputs, settings = batch(), {"use_ref_model": True, "chunk_size": chunk_size}
    ours, theirs = (run(each, inputs, **settings) for each in (FusedLinearKTOLoss, liger))
    assert_same(ours, theirs, plain(inputs, use_ref_model=True))


def test_autocast(liger):
    """Both project in bfloat16. Ours keeps the logits in float32, so the rounded operands are the oracle's."""
    inputs = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (run(each, inputs, use_ref_model=True) for each in (FusedLinearKTOLoss, liger))
    operands = ("_input", "lin_weight", "ref_input", "ref_weight")
    rounded = inputs | {name: inputs[name].bfloat16().float() for name in operands}
    exact = plain(rounded, use_ref_model=True)
    assert (exact["loss"] - plain(inputs, use_ref_model=True)["loss"]).abs() > 1e-5  # it is on
    sums_of_logits = METRICS[2:4]  # from float32 operands: nothing is projected for them
    assert_same({n: x for n, x in ours.items() if n not in sums_of_logits}, theirs, exact)


@pytest.mark.parametrize("average_log_prob", [True, False])
def test_class_weights(average_log_prob):
    inputs = batch()
    settings = {"use_ref_model": True, "average_log_prob": average_log_prob}
    ours = run(FusedLinearKTOLoss, inputs, **settings, desirable_weight=1.7, undesirable_weight=0.4)
    weights = (1.7, 0.4)
    exact = plain(inputs, **settings, weights=weights)
    assert abs(exact["loss"] - plain(inputs, **settings)["loss"]) > 0.01
    assert_same(ours, plain(inputs, **settings, weights=weights, dtype=torch.float32), exact)


@pytest.mark.parametrize("average_log_prob", [True, False])
def test_cached_reference_log_probs_stand_in_for_the_reference_model(average_log_prob):
    inputs = batch()
    settings = {"average_log_prob": average_log_prob}
    live = run(FusedLinearKTOLoss, inputs, use_ref_model=True, **settings)
    flat = batch() | {"_input": inputs["ref_input"], "lin_weight": inputs["ref_weight"], "bias": inputs["ref_bias"]}
    logps = torch.stack(
        [
            run(FusedLinearKTOLoss, {n: x[i : i + 1] if n in PER_ROW else x for n, x in flat.items()}, **settings)[name]
            for i, name in enumerate(METRICS[0 if label else 1] for label in flat["preference_labels"])
        ]
    )
    without = inputs | dict.fromkeys(("ref_input", "ref_weight", "ref_bias"))
    cached = run(FusedLinearKTOLoss, without, ref_logps=logps, **settings)
    for name in live:
        cancelled = 300 if "rewards" in name else 8  # a sum of rewards is so much smaller than the log-probs in it
        assert_close(cached[name], live[name], name=name, condition=cancelled)


PER_ROW = ("_input", "target", "preference_labels", "ref_input")


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"kl": torch.zeros(5)}, {}, "kl: got 'shape (5,)'"),
        ({"preference_labels": None}, {}, "preference_labels: got None"),
        ({"preference_labels": torch.ones(5)}, {}, "preference_labels: got ((5,), torch.float32)"),
        ({"_input": torch.zeros(45, 16)}, {}, "_input: got (45, 16)"),
        ({"target": torch.zeros(5, 8, dtype=torch.int64)}, {}, "target: got (5, 8)"),
        ({"ref_input": None}, {"use_ref_model": True}, "ref_input and ref_weight: got None"),
        ({"ref_logps": torch.zeros(5)}, {"use_ref_model": True}, "ref_logps: got 'given beside ref_input'"),
        ({"ref_logps": torch.zeros(4), "ref_input": None}, {}, "ref_logps: got (4,)"),
        ({"target": torch.full((5, 9), -100)}, {"average_log_prob": True}, "target: got 'row 0 with no scored"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, settings, message):
    with pytest.raises(InputError) as caught:
        FusedLinearKTOLoss(**settings)(**{**batch(), **changes})
    assert message in str(caught.value)


def test_the_fragment_of_the_page_runs_as_it_stands():
    page = (Path(__file__).parents[2] / "docs" / "liger.md").read_text()
    names = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    assert names["hidden"].grad.abs().sum() > 0
