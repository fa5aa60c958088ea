"""Packed attention alone, against a float64 oracle with a T x T mask: outputs, gradients, and what it refuses."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import layout_of
from tolerance import assert_close

from fastkto.batch.layout import Part, Stash
from fastkto.trunk import attention, segments, varlen
from fastkto.trunk.attention import CannotPack
from fastkto.trunk.segments import Scores

WIDTH = 8


def visible(layout, window):
    """(T, T) who sees whom, from the row, the position and the kind of every token."""
    targets, tails = layout.target_lengths, layout.kl_lengths
    starts = layout.prompt_lengths
    row = torch.tensor([i for lengths in (targets, tails) for i, n in enumerate(lengths) for _ in range(n)])
    position = torch.tensor(
        [t for n in targets for t in range(n)]
        + [t for start, n in zip(starts, tails, strict=True) for t in range(start, start + n)]
    )
    target = torch.arange(len(row)) < layout.target_tokens
    prompt = target & (position < torch.tensor(starts)[row])
    behind = position[:, None] - position
    same = (row[:, None] == row) & ((target[:, None] == target) | prompt)
    return same & (behind >= 0) & (behind < (len(row) if window is None else window))


def naive(qkv, layout, scores):
    """(1, T, heads, d): one softmax over everything, most of it masked."""
    query, key, value = qkv
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    z = query @ key.transpose(2, 3) * (WIDTH**-0.5 if scores.scaling is None else scores.scaling)
    if scores.softcap is not None:
        z = scores.softcap * torch.tanh(z / scores.softcap)
    return (z.masked_fill(~visible(layout, scores.window), -torch.inf).softmax(-1) @ value).transpose(1, 2)


def packed(qkv, layout, scores, *, module=None, **kwargs):
    """Both parts through the function that transformers calls; the prompts' keys reach the tail without a graph."""
    stash = Stash()
    named = {"scaling": scores.scaling, "sliding_window": scores.window, "softcap": scores.softcap}
    outputs = []
    for tail in (False, True):
        part = slice(layout.target_tokens, None) if tail else slice(0, layout.target_tokens)
        q, k, v = (x[:, :, part] for x in qkv)
        out, weights = attention.attention(
            torch.nn.Module() if module is None else module,
            *(q, k, v, None),
            packed=Part(layout, tail, stash),
            dropout=scores.dropout,
            **named,
            **kwargs,
        )
        assert weights is None
        assert out.is_contiguous()
        outputs.append(out)
    assert not stash.kept
    return torch.cat(outputs, dim=1)


def inputs(layout, *, heads=4, kv_heads=2, seed=0, large=2.0):
    generator = torch.Generator().manual_seed(seed)
    tokens = layout.target_tokens + layout.kl_tokens
    return [torch.randn(1, h, tokens, WIDTH, generator=generator) * large for h in (heads, kv_heads, kv_heads)]


def gradients(function, qkv, layout, scores, dtype):
    """Output, and the gradients (of queries, keys and values in one) of a random sum of it over the targets."""
    leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in qkv]
    out = function(leaves, layout, scores)
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(out.shape, generator=generator).to(dtype)
    (out * weight)[:, : layout.target_tokens].sum().backward()
    return out, torch.cat([x.grad.flatten() for x in leaves])


def assert_attends(lengths, scores, *, attend=packed, **shape):
    layout = layout_of(lengths)
    qkv = inputs(layout, **shape)
    ours, theirs = (gradients(f, qkv, layout, scores, torch.float32) for f in (attend, naive))
    oracle = gradients(naive, qkv, layout, scores, torch.float64)
    for name, a, o, b in zip(("output", "gradient"), ours, oracle, theirs, strict=True):
        assert_close(a, o, b, condition=WIDTH, name=name)  # a score is a sum of so many products


LENGTHS = [(5, 9), (1, 1), (0, 4), (14, 3), (2, 30), (3, 1)]
SCORES = [
    Scores(),
    Scores(scaling=0.7),
    Scores(window=8),
    Scores(window=1),
    Scores(window=1000),
    Scores(softcap=2.0),
    Scores(softcap=2.0, window=8, scaling=0.7),
]


@pytest.mark.parametrize("scores", SCORES, ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_against_a_mask_over_everything(scores, kv_heads):
    assert_attends(LENGTHS, scores, kv_heads=kv_heads)


lengths = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), min_size=2, max_size=5)


@settings(max_examples=20, deadline=None)
@given(lengths, st.sampled_from([None, 1, 2, 5]), st.sampled_from([None, 2.0]))
def test_any_rows(lengths, window, softcap):
    assert_attends(lengths, Scores(window=window, softcap=softcap))


def test_a_window_is_measured_in_positions_behind_a_stashed_prompt_too():
    layout = layout_of([(10, 6), (4, 2)])
    tail = layout.target_tokens
    out = {}
    for moved in (None, 6, 7):  # a key of the first prompt, for its y' at position 10, window 4: 7, 8, 9 and itself
        qkv = inputs(layout)
        if moved is not None:
            qkv[2][:, :, moved] += 1
        out[moved] = packed(qkv, layout, Scores(window=4))[:, tail]
    assert torch.equal(out[None], out[6])
    assert not torch.equal(out[None], out[7])


def test_rows_do_not_change_with_other_rows():
    layout = layout_of(LENGTHS)
    target, tail = (slice(*ends[1:3]) for ends in (layout.target_cu_seqlens, layout.tail_cu_seqlens))
    tail = slice(layout.target_tokens + tail.start, layout.target_tokens + tail.stop)
    for scores in SCORES:
        before, after = inputs(layout), inputs(layout)
        for x in after:
            x[:, :, target] += 1
            x[:, :, tail] += 1
        same = ~visible(layout, None)[:, target.start]
        same[tail] = False
        a, b = (packed(x, layout, scores)[:, same] for x in (before, after))
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scores", [Scores(), Scores(window=8), Scores(softcap=2.0)], ids=str)
def test_queries_and_keys_in_float32_beside_half_values(dtype, scores):
    """As rotary embeddings and normalised keys leave them. The result is that of all three in half."""
    layout = layout_of(LENGTHS)
    query, key, value = inputs(layout)
    ours = packed((query, key, value.to(dtype)), layout, scores)
    assert ours.dtype == dtype
    halves = [x.to(dtype) for x in (query, key, value)]
    assert torch.equal(ours, packed(halves, layout, scores))
    assert_close(ours, naive([x.double() for x in halves], layout, scores), naive(halves, layout, scores))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_dropout_draws_with_the_seed_and_keeps_the_mean(softcap):
    layout = layout_of([(3, 5), (2, 2)])
    qkv = inputs(layout, large=0.5)
    scores = Scores(dropout=0.4, softcap=softcap)

    def drawn(seed):
        torch.manual_seed(seed)
        return packed(qkv, layout, scores)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    draws = torch.stack([drawn(seed) for seed in range(80)])
    error = (draws.mean(0) - naive(qkv, layout, scores)).abs()
    assert (error < 6 * draws.std(0) / len(draws) ** 0.5).all()


class Encoder(torch.nn.Module):
    is_causal = False


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"s_aux": torch.ones(4)}, "s_aux"),
        ({"head_mask": torch.ones(4)}, "head_mask"),
        ({"position_bias": torch.ones(1)}, "position_bias"),
        ({"past_key_values": object()}, "past_key_values"),
        ({"is_causal": False}, "both directions"),
        ({"module": Encoder()}, "Encoder attends in both directions"),
    ],
)
def test_what_it_does_not_understand_is_refused(kwargs, reason):
    layout = layout_of([(2, 3), (1, 2)])
    with pytest.raises(CannotPack, match=reason):
        packed(inputs(layout), layout, Scores(), **kwargs)


def test_masks_batches_and_calls_from_outside_of_a_packed_forward_are_refused():
    layout, module = layout_of([(2, 3), (1, 2)]), torch.nn.Module()
    part = Part(layout, False, Stash())
    qkv = inputs(layout)
    with pytest.raises(CannotPack, match="its own mask"):
        attention.attention(module, *qkv, torch.zeros(1, 1, 5, 5), packed=part)
    with pytest.raises(CannotPack, match="batch of 2"):
        attention.attention(module, *(torch.cat([x, x]) for x in qkv), packed=part)
    with pytest.raises(CannotPack, match="outside of the layers"):
        attention.attention(module, *qkv)
    with pytest.raises(CannotPack, match="more often to KL rows"):
        attention.attention(module, *qkv, packed=Part(layout, True, Stash()))


def test_what_has_no_effect_is_taken():
    layout = layout_of([(2, 3), (1, 2)])
    qkv = inputs(layout)
    kwargs = {"position_ids": torch.arange(3), "use_cache": False, "is_causal": True, "s_aux": None}
    assert torch.equal(packed(qkv, layout, Scores()), packed(qkv, layout, Scores(), **kwargs))


def flash_like(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
    """What `varlen_attn` is documented to do, on any device: the last query of a row is aligned with its last key."""
    assert query.ndim == key.ndim == value.ndim == 3
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    assert (cu_seq_q[-1], cu_seq_k[-1]) == (len(query), len(key)) == (len(query), len(value))
    left, right = window_size
    assert right == 0
    rows = []
    for (a, b), (c, d) in zip(
        itertools.pairwise(cu_seq_q.tolist()), itertools.pairwise(cu_seq_k.tolist()), strict=True
    ):
        groups = query.shape[1] // key.shape[1]
        q, k, v = query[a:b], key[c:d].repeat_interleave(groups, 1), value[c:d].repeat_interleave(groups, 1)
        z = torch.einsum("qhd,khd->hqk", q, k) * (query.shape[-1] ** -0.5 if scale is None else scale)
        behind = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
        seen = (behind >= 0) & ((behind <= left) | (left < 0))
        rows.append(torch.einsum("hqk,khd->qhd", z.masked_fill(~seen, -torch.inf).softmax(-1), v))
    return torch.cat(rows)


@pytest.mark.parametrize("scores", [s for s in SCORES if s.softcap is None], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("groups", [True, False], ids=["", "without enable_gqa"])
def test_what_the_cuda_kernel_is_asked(scores, kv_heads, groups, monkeypatch):
    """No GPU here: its arguments, through a stand-in that computes what it documents."""
    monkeypatch.setattr(varlen, "_GROUPS", groups)
    monkeypatch.setattr(varlen, "varlen_attn", flash_like)
    monkeypatch.setattr(varlen, "applies", lambda *_: True)
    monkeypatch.delattr(segments, "attend")
    assert_attends(LENGTHS, scores, kv_heads=kv_heads)


def test_when_the_cuda_kernel_is_asked(monkeypatch):
    query = torch.empty(1, 4, 3, 64, dtype=torch.bfloat16)
    assert not varlen.applies(query, query, Scores()), "on the CPU"

    class OnCUDA:
        def __init__(self, dtype=torch.bfloat16, width=64):
            self.shape, self.dtype, self.device = (1, 4, 3, width), dtype, torch.device("cuda")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert varlen.applies(OnCUDA(), OnCUDA(), Scores(window=5)) == varlen.SERVES
    for not_this in (OnCUDA(torch.float32), OnCUDA(width=36), OnCUDA(width=512)):
        assert not varlen.applies(not_this, not_this, Scores())
    assert not varlen.applies(OnCUDA(), OnCUDA(width=128), Scores()), "values of another width"
    for scores in (Scores(dropout=0.1), Scores(softcap=2.0)):
        assert not varlen.applies(OnCUDA(), OnCUDA(), scores)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not varlen.applies(OnCUDA(), OnCUDA(), Scores())
