"""`patch_trl_head` in the TRLs that make logits for most trainers: their chunked head."""

import importlib

import pytest
import torch
from hosts import Calls
from tiny import tiny_llama
from tolerance import assert_close
from transformers.utils import logging

from fastkto.integrations.trl import head as trl_head
from fastkto.integrations.trl.head import patch_trl_head

trl = pytest.importorskip("trl", reason="the test extra brings TRL, the host")
utils = importlib.import_module("trl.trainer.utils")
if hasattr(utils, "add_fused_lm_head"):
    pytest.skip(f"TRL {trl.__version__} has one head for all trainers: test_trl_head.py", allow_module_level=True)

HEADS = {
    "plain": {},
    "softcap": {"softcap": 4.0},
    "scale and temperature": {"scale": 0.3, "temperature": 0.7},
    "everything": {"softcap": 4.0, "scale": 1.7, "temperature": 1.3},
}


def call(dtype=torch.float32, *, softcap=None, scale=1.0, temperature=1.0, exact=False):
    """Results and gradients of the head that TRL has now, its log-probs and its entropy both differentiated."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((37, 19), (1031, 19), (1031,))
    )
    has_bias = trl_head._form(utils._ChunkedLogProbFunction) is trl_head._with_bias
    targets = torch.randint(0, 1031, (37,), generator=generator)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)[: 2 + has_bias]]
    if exact:
        z = scale * (hidden @ weight.T + (bias if has_bias else 0))
        z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
        logp = z.log_softmax(1)
        found = logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(1)
    else:
        found = utils._ChunkedLogProbFunction.apply(*leaves, targets, temperature, 128, softcap, scale)
    upstream = torch.randn(2, 37, generator=generator)
    return *found, *torch.autograd.grad(sum((x * g).sum() for x, g in zip(found, upstream, strict=True)), leaves)


@pytest.mark.parametrize("case", HEADS)
def test_the_head_gives_what_trls_gives(case):
    exact, host = call(torch.float64, exact=True, **HEADS[case]), call(**HEADS[case])
    with patch_trl_head():
        found = call(**HEADS[case])
    assert len(found) == len(host) >= 4
    for a, b, c in zip(found, host, exact, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, c, b, name=case)


def test_a_model_with_trls_chunked_head_scores_with_ours(monkeypatch):
    calls, found = Calls(monkeypatch), []
    calls.count(utils._ChunkedLogProbFunction, "forward", static=True)
    calls.count(trl_head, "token_stats")
    ids = torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(1))
    for patched in (True, False):
        model = tiny_llama(seed=1)
        utils.patch_chunked_lm_head(model, 128, 1.0)
        patch = patch_trl_head() if patched else None
        out = model(input_ids=ids, labels=ids, completion_mask=torch.ones_like(ids))
        counts = calls.since()
        assert bool(counts["token_stats"]) == patched == (not counts["forward"])
        out["log_probs"].sum().backward()
        found.append([out["log_probs"], out["entropy"], *(p.grad for p in model.parameters())])
        if patch:
            patch.unpatch()
    for a, b in zip(*found, strict=True):
        assert_close(a, b, b, name="a figure or a gradient", condition=10)


def test_a_line_says_once_what_stays_as_it_is(warnings):
    logging.get_logger().warning_once.__func__.cache_clear()
    for _ in range(2):
        patch_trl_head().unpatch()
    assert sum("makes logits for most of its trainers" in line for line in warnings.messages) == 1
