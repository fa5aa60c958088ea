"""KTO with no trainer: `python examples/plain_pytorch.py [MODEL]`; without a MODEL a tiny random one, offline."""

import itertools
import sys

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import fastkto

ROWS = [("Name a colour.", " Blue.", True), ("Two and two?", " No idea.", False), ("Say hello.", " Hello!", True)]
torch.manual_seed(0)
if len(sys.argv) > 1:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    encode = AutoTokenizer.from_pretrained(sys.argv[1]).encode
else:
    config = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model, encode = LlamaForCausalLM(LlamaConfig(vocab_size=256, **config)), lambda text: list(text.encode())
X, Y = [encode(x) for x, _, _ in ROWS], [encode(y) for _, y, _ in ROWS]
mismatched = Y[-1:] + Y[:-1]  # another row's answer for the reference point z0


def scored(answers):  # hidden states that predict the answers' tokens, the tokens, and the rows' bounds
    rows = [torch.tensor(x + y) for x, y in zip(X, answers, strict=True)]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    hidden = model.base_model(pad_sequence(rows, batch_first=True), attention_mask=mask).last_hidden_state
    hidden = torch.cat([h[len(x) - 1 :][: len(y)] for h, x, y in zip(hidden, X, answers, strict=True)])
    return hidden, torch.cat([torch.tensor(y) for y in answers]), [0, *itertools.accumulate(map(len, answers))]


def logps(answers):
    hidden, targets, bounds = scored(answers)
    return torch.stack([row.sum() for row in fastkto.token_logprobs(hidden, W, targets).tensor_split(bounds[1:-1])])


W, labels = model.lm_head.weight, torch.tensor([label for _, _, label in ROWS])
with torch.no_grad():
    ref_logps, ref_kl_logps = logps(Y), logps(mismatched)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(10):
    with torch.no_grad():
        kl = dict(zip(("kl_hidden", "kl_targets", "kl_cu_seqlens"), scored(mismatched), strict=True))
    hidden, targets, bounds = scored(Y)
    out = fastkto.fused_linear_kto(hidden, W, targets, bounds, labels, ref_logps, ref_kl_logps=ref_kl_logps, **kl)
    out.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}  loss {out.loss.item():.4f}  z0 {out.z0.item():.3f}  rewards {out.rewards.tolist()}")
