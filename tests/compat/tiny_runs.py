"""What the tests of LLaMA-Factory and ms-swift share: models on disk, rows of feedback, counted calls, equal log lines.

Both hosts take folders and files; nothing here imports a host.
"""

import functools
import math

import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama, tiny_tokenizer
from tolerance import assert_within
from transformers import AutoModelForCausalLM

STEPS = 6
ROWS = [
    {"prompt": f"Say {word}.", "answer": f"{word} " * (1 + i % 5), "good": i % 3 != 1}
    for i, word in enumerate(["one", "two", "red", "blue", "cat", "dog", "up", "down"] * 4)
]
MEASURED = ("epoch", "time", "speed", "memory", "runtime", "per_second", "global_step")  # not a result of training


def make_models(folder, form="Human: {prompt}\nAssistant:{answer}"):
    """`reference`, and some steps of plain training away from it `policy` and `adapter`, so that z0 is not clamped.

    `form`: how a row is one text. That of the host's template matters to an adapter, which learns little beside it.
    """
    tokenizer = tiny_tokenizer()
    model = tiny_llama(vocab=len(tokenizer))
    _save(model, tokenizer, folder / "reference")
    _learn_the_answers(model, tokenizer, form)
    _save(model, tokenizer, folder / "policy")
    reference = AutoModelForCausalLM.from_pretrained(folder / "reference")
    adapted = get_peft_model(reference, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    _learn_the_answers(adapted, tokenizer, form, lr=2e-2)
    adapted.save_pretrained(folder / "adapter")


def _save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _learn_the_answers(model, tokenizer, form, lr=3e-3):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(12):
        for row in ROWS[:8]:
            ids = torch.tensor([tokenizer(form.format(**row)).input_ids])
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def count(patch, calls: dict[str, int], owner, name: str, label: str):
    """Count calls of an attribute of a module or class in `calls[label]`; it stays as it is otherwise."""
    original = getattr(owner, name)
    calls[label] = 0

    @functools.wraps(original)
    def counted(*args, **kwargs):
        calls[label] += 1
        return original(*args, **kwargs)

    patch.setattr(owner, name, counted)


def assert_same_lines(ours, theirs, *, steps=STEPS, kl=True):
    """Every figure of every log line to 1e-4, the same keys, and z0 off its clamp where there is one."""
    assert len(ours) == len(theirs) == steps
    for step, (mine, host) in enumerate(zip(ours, theirs, strict=True)):
        assert not kl or host["kl"] > 0.1, "z0 is clamped: the comparison would be vacuous"
        assert mine.keys() == host.keys()
        for name, value in host.items():
            if not any(word in name for word in MEASURED):
                assert math.isfinite(mine[name])
                assert_within(mine[name], value, relative=1e-4, absolute=1e-6, name=f"{name} of step {step}")
