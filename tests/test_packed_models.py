"""Packed against padded, for every family: log-probs, loss and every gradient, through the step that trains."""

import pytest
import torch
from families import EXPERTS, FAMILIES, family
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tolerance import assert_close

from fastkto.batch import PackingCollator, PaddingCollator
from fastkto.batch.targets_and_kl import streams
from fastkto.losses.kto import kto_loss
from fastkto.model import find_head, install_scorer
from fastkto.step import LossSettings, kto_step, row_logps
from fastkto.trunk import Forward

SETTINGS = LossSettings(0.3, 1.4, 0.8, "kto")


def rows(lengths, *, vocabulary=64, seed=0):
    """Rows of (prompt, completion) lengths with random tokens."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n):
        return torch.randint(3, vocabulary, (n,), generator=generator).tolist()

    return [
        {"prompt_ids": ids(p), "completion_ids": ids(c), "label": i % 3 != 0, "row_id": i, "conversation": i}
        for i, (p, c) in enumerate(lengths)
    ]


LENGTHS = [(5, 9), (1, 1), (0, 4), (14, 3), (2, 30), (3, 1)]


def step(model, batch, *, loss_type="kto", router=False, **how):
    """Loss, metrics and gradients of one micro-step, at a fixed reference so that k is about +1."""
    install_scorer(model)
    model.zero_grad()
    forward = Forward(model, plain_head=find_head(model).plain, router_logits=router, **how)
    n = len(batch["label"])
    ref, ref_kl = -50 + torch.arange(n) * 1.0, None
    if loss_type == "kto":
        with torch.no_grad():
            ref_kl = row_logps(forward, batch)[1] - 1 + 0.1 * torch.arange(n)
    out, aux = kto_step(forward, batch, ref, ref_kl, SETTINGS._replace(loss_type=loss_type), num_rows=None, reduce=None)
    loss = out.loss if aux is None else out.loss + EXPERTS["router_aux_loss_coef"] * aux
    loss.backward()
    return out, aux, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step_alone(model, data, max_length):
    """The oracle: every row through the stock model by itself, no padding, the loss from log-probs."""
    model.zero_grad()
    forward = Forward(model, plain_head=find_head(model).plain)
    lengths, _, kl = streams(data, max_length, kl=True)
    pairs = [row | {"completion_ids": ids[start:]} for row, start, ids in zip(data, lengths, kl, strict=True)]
    collator = PaddingCollator(0, max_length, kl=False)
    logps = torch.cat([row_logps(forward, collator([row]), graph=True)[0] for row in data])
    kl_logps = torch.cat([row_logps(forward, collator([row]))[0] for row in pairs])
    n = len(data)
    ref, ref_kl = -50 + torch.arange(n) * 1.0, kl_logps - 1 + 0.1 * torch.arange(n)
    labels = torch.tensor([row["label"] for row in data])
    out = kto_loss(logps, ref, labels, kl_logps=kl_logps, ref_kl_logps=ref_kl, **SETTINGS._asdict())
    out.loss.backward()
    return out, None, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model, lengths, *, loss_type="kto", max_length=None, max_tokens=None, router=False, seed=0):
    """Packed float32 within the tolerance of padded float32, around an oracle in float64."""
    data = rows(lengths, seed=seed)
    kl = loss_type == "kto"
    padded = PaddingCollator(0, max_length, kl=kl)(data)
    packed = PackingCollator(max_length, kl=kl, max_tokens=max_tokens)(data)
    options = {"loss_type": loss_type, "router": router}
    ours = step(model, packed, **options)
    torch_32 = step(model, padded, **options)
    model.double()
    alone = kl and not router  # stock Gemma 2 has NaN on padding in float64
    exact = step_alone(model, data, max_length) if alone else step(model, padded, **options)
    model.float()
    for name in ("loss", "kl", "z0", "rewards"):
        assert_close(getattr(ours[0], name), getattr(exact[0], name), getattr(torch_32[0], name), name=name)
    if router:
        assert_close(ours[1], exact[1], torch_32[1], name="auxiliary loss")
    assert set(ours[2]) == set(torch_32[2])
    for name, grad in ours[2].items():
        assert_close(grad, exact[2][name], torch_32[2][name], name=f"d {name}")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_equals_padded(name, checkpointing):
    model = family(name).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same_step(model, LENGTHS, router="router_aux_loss_coef" in FAMILIES[name])


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("max_tokens", [1, 40, 60])
def test_split_forwards_share_one_z0(max_tokens, loss_type):
    assert_same_step(family("llama").train(), LENGTHS, max_tokens=max_tokens, loss_type=loss_type)


def test_without_kl_rows_under_checkpointing():
    model = family("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same_step(model, LENGTHS, loss_type="apo_zero_unpaired")


def test_truncation():
    assert_same_step(family("qwen3").train(), LENGTHS, max_length=17)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 140)), min_size=2, max_size=5), seed=st.integers(0, 9)
)
def test_any_lengths(lengths, seed):
    assume(sum(p == 0 for p, _ in lengths) < 2)  # rows without a prompt share it
    assert_same_step(family("mistral", seed=seed, num_hidden_layers=1).train(), lengths, seed=seed)


def test_lora():
    peft = pytest.importorskip("peft", reason="the test extra brings peft")
    model = family("llama").train()
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    assert_same_step(peft.get_peft_model(model, config).get_base_model(), LENGTHS)
