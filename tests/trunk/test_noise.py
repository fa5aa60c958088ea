"""NEFTune (transformers#34659): the noise of a row is as wide as its own length asks, packed, padded and one by one."""

import itertools

import pytest
import torch
from families import family
from packed_steps import rows
from tolerance import assert_within
from transformers.integrations.neftune import activate_neftune

from fastkto.batch import PackingCollator, PaddingCollator
from fastkto.step.micro_step import row_logps
from fastkto.trunk import ModelRun
from fastkto.trunk.scorer import install_scorer

LENGTHS = [(60, 40), (2, 7), (30, 1), (5, 12)]
ALPHA, HIDDEN = 5.0, 512
COLLATORS = {
    "packed": PackingCollator(None),
    "padded": PaddingCollator(0, None),
    "one by one": PaddingCollator(0, None, one_by_one=True),
}


def noisy_llama():
    model = family("llama", hidden_size=HIDDEN, num_hidden_layers=1, head_dim=8).train()
    activate_neftune(model, ALPHA)
    install_scorer(model)
    return model


def spread(noise):
    """Standard deviation of a uniform noise -> its half width."""
    return noise.std().item() * 3**0.5


def seen_noise(model, batch):
    """(B, T, D) of every forward: what entered the first layer without the embeddings themselves."""
    noise = []
    layer, ids = model.model.layers[0].input_layernorm, []
    hooks = [
        model.model.register_forward_pre_hook(lambda m, args, kw: ids.append(kw["input_ids"]), with_kwargs=True),
        layer.register_forward_pre_hook(lambda m, args: noise.append(args[0].detach())),
    ]
    row_logps(ModelRun(model), batch, graph=True)
    for hook in hooks:
        hook.remove()
    return ids, noise


def widths(way, model, data):
    """Half width of the noise on each [x | y]."""
    batch = COLLATORS[way](data)
    ids, noise = seen_noise(model, batch)
    table = model.get_input_embeddings().weight.detach()
    if way == "packed":
        (sequence,) = batch["sequences"]
        bounds = sequence["target_cu_seqlens"]
        noise = noise[0][0] - table[ids[0][0, : bounds[-1]]]
        return [spread(noise[a:b]) for a, b in itertools.pairwise(bounds)]
    noise = [x - table[i] for i, x in zip(ids, noise, strict=True)]
    targets = noise[1::2] if way == "one by one" else [row[None] for row in noise[1]]
    return [spread(x[0, : len(r["prompt_ids"] + r["completion_ids"])]) for x, r in zip(targets, data, strict=True)]


@pytest.mark.parametrize("way", COLLATORS)
def test_noise_goes_by_the_rows_own_length(way):
    model, data = noisy_llama(), rows(LENGTHS)
    for width, (prompt, completion) in zip(widths(way, model, data), LENGTHS, strict=True):
        row = torch.tensor([[3] * (prompt + completion)])
        with torch.no_grad():  # transformers' own, on the row by itself
            embedding = model.get_input_embeddings()
            stock = spread(embedding(row) - embedding.weight[row])
        assert_within(width, ALPHA / ((prompt + completion) * HIDDEN) ** 0.5, relative=0.05)
        assert_within(width, stock, relative=0.05)


@pytest.mark.parametrize("way", COLLATORS)
def test_no_noise_in_evaluation_and_the_hook_is_left_as_it_was(way):
    model, data = noisy_llama(), rows(LENGTHS)
    logps = [row_logps(ModelRun(model), COLLATORS[way](data))[0] for _ in range(2)]
    assert not torch.equal(*logps)
    embedding = model.get_input_embeddings()
    assert embedding.neftune_noise_alpha == ALPHA
    assert len(embedding._forward_hooks) == 1
    model.eval()
    logps = [row_logps(ModelRun(model), COLLATORS[way](data))[0] for _ in range(2)]
    assert torch.equal(*logps)
