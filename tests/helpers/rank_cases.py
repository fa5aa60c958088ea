"""What the ranks of `ranks.py` train on: cases of what several processes have and one has not."""

import peft
import torch
from tiny import tiny_llama
from tiny_trainer import noisy, rows

LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"]}


def one_class(i):
    return i % 8 < 4


CASES = {  # rows and settings
    "ranks of one class": ({"count": 24, "desirable": one_class}, {}),
    "a short last batch": ({"count": 22, "desirable": one_class}, {}),
    "an empty last batch": ({"count": 18, "desirable": one_class}, {}),
    "accumulation": ({"count": 24, "desirable": one_class}, {"gradient_accumulation_steps": 2}),
    "forwards of few tokens": ({"count": 24, "desirable": one_class}, {"max_tokens_per_forward": 90}),
    "forwards of few tokens, padded": (
        {"count": 24, "desirable": one_class},
        {"max_tokens_per_forward": 90, "packing": False},
    ),
    "padded": ({"count": 22, "desirable": one_class}, {"packing": False}),
    "an adapter": ({"count": 24, "desirable": one_class}, {"adapter": True}),
    "no second model": ({"count": 24, "desirable": one_class}, {"precompute_ref_log_probs": True}),
    "an adapter's frozen copy": ({"count": 24, "desirable": one_class}, {"adapter": True, "reference": None}),
    "an adapter switched off": ({"count": 24, "desirable": one_class}, {"peft": True, "reference": None}),
    "other numbers of forwards": ({"count": 24, "desirable": one_class, "long": 4}, {"max_tokens_per_forward": 90}),
    "other numbers of forwards, an adapter": (
        {"count": 24, "desirable": one_class, "long": 4},
        {"max_tokens_per_forward": 90, "peft": True, "reference": None},
    ),
    "other numbers of forwards, padded": (
        {"count": 24, "desirable": one_class, "long": 4},
        {"max_tokens_per_forward": 90, "packing": False},
    ),
    "loaded by its id": ({"count": 16, "desirable": one_class}, {"by_id": True, "reference": None}),
}
TAKEN_APART = {
    "loaded by its id, no second model": (
        {"count": 16, "desirable": one_class},
        {"by_id": True, "reference": None, "precompute_ref_log_probs": True},
    ),
    "loaded by its id, an adapter": (
        {"count": 16, "desirable": one_class},
        {"by_id": True, "reference": None, "peft": True, "precompute_ref_log_probs": True},
    ),
}
"""Of ZeRO-3, which takes a model apart as it is loaded: its weights are gathered before training too."""


def rows_of(data):
    """The rows of a case; those of odd ranks longer, where it says how many times."""
    plain = rows(data["count"], desirable=data["desirable"])
    if "long" not in data:
        return plain

    def longer(row, i):
        reply = row["completion"][0]["content"]
        return {"completion": [{"role": "assistant", "content": reply * (data["long"] if i % 8 >= 4 else 1)}]}

    return plain.map(longer, with_indices=True)


def model(*, adapter=False):
    plain = noisy(tiny_llama(), seed=7)
    if not adapter:
        return plain
    torch.manual_seed(8)
    return peft.get_peft_model(plain, peft.LoraConfig(**LORA, init_lora_weights=False))
