"""What the tests of every host share: a policy away from its reference, counted calls, six equal steps."""

import copy
import functools
import math
from collections import Counter

import torch
from tiny import tiny_llama, tiny_tokenizer
from tiny_trainer import rows
from tolerance import assert_within

STEPS = 6
RELATIVE = 1e-4
NATS = 1e-5  # of figures that may come close to zero
EXACT = ("loss", "grad_norm", "learning_rate", "eval_loss")


def sft(model, *, steps: int = 12, lr: float = 3e-3):
    """The model after a few steps on the completions: its log-ratios to where it was are positive, those of y' too."""
    tokenizer = tiny_tokenizer()
    texts = ([*row["prompt"], *row["completion"]] for row in rows(24).to_list())
    ids = [tokenizer.apply_chat_template(text, return_dict=True)["input_ids"] for text in texts]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def policy_and_reference():
    """Two tiny models, the first some steps ahead of the second."""
    reference = tiny_llama(seed=1)
    return sft(copy.deepcopy(reference)), reference


class Calls:
    """Counts calls of functions, which stay as they are otherwise."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.counts = monkeypatch, Counter()

    def count(self, owner, *names, static=False):
        """Count every call of these attributes of a module or class, under their names."""
        for name in names:
            original = getattr(owner, name)

            @functools.wraps(original)  # hosts are recognised by signature
            def counted(*args, _name=name, _original=original, **kwargs):
                self.counts[_name] += 1
                return _original(*args, **kwargs)

            self.monkeypatch.setattr(owner, name, staticmethod(counted) if static else counted)

    def since(self) -> Counter:
        """The counts up to now, which start anew."""
        counts, self.counts = self.counts, Counter()
        return counts


def compare(ours: list[dict], theirs: list[dict], *, steps: int = STEPS, kl: bool = True, relative=RELATIVE, nats=NATS):
    """Every figure of the host's log lines, to `relative`; with `kl`, z0 is above its clamp in every one."""
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert sum("loss" in line for line in theirs) == steps
    for a, b in zip(ours, theirs, strict=True):
        for name, expected in b.items():
            if not name.endswith(("runtime", "per_second", "model_preparation_time")):
                assert math.isfinite(a[name])
                assert_within(a[name], expected, relative=relative, absolute=0 if name in EXACT else nats, name=name)
        if kl and (name := "kl" if "kl" in b else "eval_kl") in b:
            assert b[name] > 0.1, "z0 is clamped: the comparison would be vacuous"
