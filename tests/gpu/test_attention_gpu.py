"""Packed attention on a GPU: flash attention over the rows against one attention a row."""

import pytest
import torch
from tiny import layout_of
from tolerance import assert_close

from fastkto.batch import Layout
from fastkto.trunk import segments, varlen
from fastkto.trunk.segments import Scores

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICE, WIDTH, HEADS = "cuda", 64, 4
LENGTHS = [(5, 9), (1, 1), (0, 4), (140, 3), (2, 300), (3, 1)]


def on_device(layout):
    return Layout(**{name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in vars(layout).items()})


def attended(attend, layout, scores, kv_heads, dtype):
    """Outputs of the targets and of the tail behind them, and the gradients of the targets'."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def qkv(tokens):
        shapes = [(1, heads, tokens, WIDTH) for heads in (HEADS, kv_heads, kv_heads)]
        found = [torch.randn(shape, device=DEVICE, generator=generator).bfloat16() for shape in shapes]
        return [x.to(dtype).requires_grad_() for x in found]

    leaves, tail = qkv(layout.target_tokens), qkv(layout.kl_tokens)
    out = attend(*leaves, None, layout, scores)
    weights = torch.randn(out.shape, device=DEVICE, generator=generator).to(dtype)
    (out * weights).sum().backward()
    with torch.no_grad():
        behind = attend(*tail, (leaves[1].detach(), leaves[2].detach()), layout, scores)
    return {"targets": out, "tail": behind} | {f"d {n}": x.grad for n, x in zip("qkv", leaves, strict=True)}


@pytest.mark.parametrize("scores", [Scores(), Scores(scaling=0.7), Scores(window=8), Scores(window=1)], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_flash_attention_over_packed_rows(kv_heads, scores):
    assert varlen.SERVES, "this torch's varlen_attn lacks scale or window_size: packed attention is slow here"
    layout = on_device(layout_of(LENGTHS))
    query = torch.empty(1, HEADS, 1, WIDTH, dtype=torch.bfloat16, device=DEVICE)
    assert varlen.applies(query, query, scores)
    exact = attended(segments.attend, layout, scores, kv_heads, torch.float64)
    plain = attended(segments.attend, layout, scores, kv_heads, torch.bfloat16)
    ours = attended(varlen.attend, layout, scores, kv_heads, torch.bfloat16)
    for name, value in ours.items():
        assert_close(value, exact[name], plain[name], name=name)
