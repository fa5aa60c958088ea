"""What the drop-ins of padded hosts read off the logits, beside the logits, for heads of every kind."""

import copy

import peft
import pytest
import torch
from families import family
from tiny import tiny_llama
from tolerance import assert_close

from fastkto.errors import InputError
from fastkto.integrations.padded import padded_scorer
from fastkto.trunk.scorer import teach_scorer


def adapted(targets):
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    return peft.get_peft_model(family("llama"), config)


MODELS = {
    "plain": lambda: family("llama"),
    "tied": lambda: tiny_llama(tie_word_embeddings=True),
    "scaled": lambda: family("granite"),
    "softcap": lambda: family("gemma2"),
    "adapter": lambda: adapted(["q_proj", "v_proj"]),
    "adapter on the head": lambda: adapted(["q_proj", "lm_head"]),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def batch():
    torch.manual_seed(1)
    ids = torch.randint(3, 64, (3, 11))
    mask, labels = torch.ones_like(ids), ids.clone()
    labels[0, :5] = -100
    labels[1, [0, 1, 7]] = -100
    mask[2, 8:], labels[2, 8:] = 0, -100
    return ids, mask, labels


def from_logits(model, ids, mask, labels):
    logits = model(input_ids=ids, attention_mask=mask).logits
    scored = labels[:, 1:] != -100
    picked = logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:].masked_fill(~scored, 0)[..., None])[..., 0]
    return picked * scored, logits.detach().sum(-1)


def test_equals_what_the_logits_say(model):
    """Values and gradients of a loss that weighs tokens unevenly."""
    ids, mask, labels = batch()
    exact_model = copy.deepcopy(model).double()
    teach_scorer(model)
    scores = model(input_ids=ids, attention_mask=mask, scorer=padded_scorer(labels))
    logps, sums = from_logits(model, ids, mask, labels)
    exact_logps, exact_sums = from_logits(exact_model, ids, mask, labels)
    assert scores.logps.shape == logps.shape == (3, 10)
    assert not scores.logps[labels[:, 1:] == -100].any()
    assert_close(scores.logps, exact_logps, logps, name="log-probs")
    assert_close(scores.logit_sums, exact_sums, sums, name="sums of logits")
    assert not scores.logit_sums.requires_grad
    weights = torch.linspace(-1, 1, 30).view(3, 10)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours = torch.autograd.grad((weights * scores.logps).sum(), parameters.values())
    theirs = torch.autograd.grad((weights * logps).sum(), parameters.values())
    exact = torch.autograd.grad(
        (weights.double() * exact_logps).sum(), [p for p in exact_model.parameters() if p.requires_grad]
    )
    for name, a, b, c in zip(parameters, ours, theirs, exact, strict=True):
        assert_close(a, c, b, name=name)


def test_a_batch_without_labels_keeps_a_graph():
    model = family("llama")
    teach_scorer(model)
    ids, mask, labels = batch()
    scores = model(input_ids=ids, attention_mask=mask, scorer=padded_scorer(torch.full_like(labels, -100)))
    scores.logps.sum().backward()
    assert not scores.logps.any()
    assert not model.lm_head.weight.grad.any()


def test_a_head_that_is_more_than_its_weight_is_refused():
    model = family("llama")
    own = model.forward

    def forward(**kwargs):
        outputs = own(**kwargs)
        outputs.logits = 2 * outputs.logits
        return outputs

    model.forward = forward
    with pytest.raises(InputError, match="head is not supported"):
        teach_scorer(model)
