"""One micro-step of a tiny model on few rows, packed, padded and a row at a time, and whether they are the same."""

import torch
from families import EXPERTS
from tolerance import assert_close

from fastkto.batch import PackingCollator, PaddingCollator
from fastkto.batch.targets_and_kl import streams
from fastkto.losses.kto import LossSettings, kto_loss
from fastkto.step.micro_step import ReferenceLogps, kto_step, row_logps
from fastkto.trunk import ModelRun
from fastkto.trunk.modules import find_head
from fastkto.trunk.scorer import install_scorer

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
    run = ModelRun(model, plain_head=find_head(model).plain, router_logits=router, **how)
    n = len(batch["label"])
    ref, ref_kl = -50 + torch.arange(n) * 1.0, None
    if loss_type == "kto":
        with torch.no_grad():
            ref_kl = row_logps(run, batch)[1] - 1 + 0.1 * torch.arange(n)
    settings = SETTINGS._replace(loss_type=loss_type)
    out, aux = kto_step(run, batch, ReferenceLogps(ref, ref_kl), settings, num_rows=None, reduce=None)
    loss = out.loss if aux is None else out.loss + EXPERTS["router_aux_loss_coef"] * aux
    loss.backward()
    return out, aux, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step_alone(model, data, max_length, *, logp=None):
    """The oracle: every row through the stock model by itself, no padding, the loss from log-probs.

    `logp`: (prompt ids, completion ids) -> log-prob, where the model's own logits are to give it.
    """
    model.zero_grad()
    run = ModelRun(model, plain_head=None if logp else find_head(model).plain)

    def score(row):
        if logp is not None:
            return logp(row["prompt_ids"], row["completion_ids"])[None]
        return row_logps(run, collator([row]), graph=torch.is_grad_enabled())[0]

    lengths, _, kl = streams(data, max_length, kl=True)
    pairs = [row | {"completion_ids": ids[start:]} for row, start, ids in zip(data, lengths, kl, strict=True)]
    collator = PaddingCollator(0, max_length, kl=False)
    logps = torch.cat([score(row) for row in data])
    with torch.no_grad():
        kl_logps = torch.cat([score(row) for row in pairs])
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


def checkpointed(model, **options):
    model.train().gradient_checkpointing_enable(options or {"use_reentrant": False})
    return model


def packed(lengths=LENGTHS, **how):
    return PackingCollator(None, **how)(rows(lengths))


def assert_identical(ours, theirs):
    assert torch.equal(ours[0].loss, theirs[0].loss)
    assert ours[2].keys() == theirs[2].keys()
    for name, grad in ours[2].items():
        assert torch.equal(grad, theirs[2][name]), name
