"""A trainer on a tiny model and a few rows, and one step of it by hand with stock forwards."""

import atexit
import gc

import torch
from datasets import Dataset
from tiny import tiny_llama, tiny_tokenizer
from transformers import TrainerCallback

from fastkto import KTOConfig, KTOTrainer, RowOptions, normalise

gc.freeze()  # accelerate collects garbage at every train(): without what the imports made, in no time
atexit.register(gc.unfreeze)

WORDS = ["salt", "iron", "moss", "rain", "oak", "clay", "wind", "fern", "mint", "rust"]
CONSTRUCTOR = (
    "train_dataset",
    "eval_dataset",
    "processing_class",
    "compute_metrics",
    "callbacks",
    "optimizers",
    "data_collator",
    "quantization_config",
)


def rows(count: int = 12, *, desirable=lambda i: i % 2 == 0) -> Dataset:
    """Conversations of unequal lengths, every prompt its own."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"{WORDS[i % 10]} {i}"}],
                "completion": [{"role": "assistant", "content": WORDS[(3 * i) % 10][: 1 + i % 4]}],
                "label": desirable(i),
            }
            for i in range(count)
        ]
    )


def weighted(data: Dataset, weights: list[float]) -> Dataset:
    """The rows, each with its weight."""
    return normalise(data.add_column("votes", weights), RowOptions(weight_column="votes"))


def config(tmp_path, **changes) -> KTOConfig:
    """Few steps on the CPU in float32, a log line each, nothing saved unless asked for."""
    settings = {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    return KTOConfig(**{**settings, **changes})


def trainer(tmp_path, *, model=None, ref_model=None, peft_config=None, **changes) -> KTOTrainer:
    """`KTOTrainer` with `config`; keywords that the constructor knows go there."""
    own = {name: changes.pop(name) for name in CONSTRUCTOR if name in changes}
    return KTOTrainer(
        tiny_llama() if model is None else model,
        ref_model=ref_model,
        args=config(tmp_path, **changes),
        peft_config=peft_config,
        **{"train_dataset": rows(), "processing_class": tiny_tokenizer(), **own},
    )


def steps(trainer) -> list[dict[str, float]]:
    """The log lines of the training steps."""
    return [line for line in trainer.state.log_history if "loss" in line]


def rows_seen(t):
    """The rows of every micro-batch, as the trainer's own loop forms them."""
    seen, loss = [], t.compute_loss

    def spy(model, inputs, *args, **kwargs):
        seen.append(inputs["row_ids"].tolist())
        return loss(model, inputs, *args, **kwargs)

    t.compute_loss = spy
    t.train()
    return seen


def noisy(model, scale=0.02, seed=5):
    """The model with noise on its weights, in place: another model than it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


class Gradients(TrainerCallback):
    """The gradients of every optimizer step, before clipping has a say (max_grad_norm=0)."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


STILL = {"learning_rate": 1e-30, "max_grad_norm": 0.0, "optim": "sgd", "train_sampling_strategy": "sequential"}
"""Settings under which the policy stays where it is, and rows come in their order."""
GENTLE = {**STILL, "beta": 0.5}


def logp(model, prompt, completion):
    """log p(completion | prompt) of one row, summed, by the stock model's logits."""
    ids = torch.tensor([[*prompt, *completion]])
    logps = (
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        .logits[0, -len(ids[0]) : -1]
        .log_softmax(-1)
    )
    return logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0].sum()


def by_hand(policy, reference, data, batches, *, beta=0.1, weights=(1.0, 1.0), shared_z0=False):
    """Eqs. (1) to (6) over the micro-batches of one optimizer step, a row at a time.

    `shared_z0`: the batches are those of several ranks in one micro-step, not of several micro-steps.
    """
    kl = []
    for batch in batches:
        items = [data[i] for i in batch]
        pairs = [(x["prompt_ids"], items[i - 1]["completion_ids"]) for i, x in enumerate(items)]
        with torch.no_grad():
            kl.append(torch.stack([logp(policy, *pair) - logp(reference, *pair) for pair in pairs]))
    if shared_z0:
        kl = [torch.cat(kl)] * len(batches)
    losses, own_weights = [], []
    for batch, kl_B in zip(batches, kl, strict=True):
        z0 = kl_B.mean().clamp(min=0)
        for x in (data[i] for i in batch):
            own = x["prompt_ids"], x["completion_ids"]
            with torch.no_grad():
                base = logp(reference, *own)
            u = beta * (logp(policy, *own) - base - z0)
            own_weights.append(x.get("weight", 1.0))
            losses.append(weights[0] * torch.sigmoid(-u) if x["label"] else weights[1] * torch.sigmoid(u))
    losses = torch.stack(losses)
    return (losses * torch.tensor(own_weights, dtype=losses.dtype)).sum() / sum(own_weights)


class At(TrainerCallback):
    """Does something at the beginning of one optimizer step (counted from 1)."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            self.action()
