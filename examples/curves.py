"""What the curves of a KTO run look like when one setting is wrong, by running it wrong.

    python examples/curves.py [--steps N] [--out FOLDER]

Trains a tiny model on made-up feedback, once as it should be and once with each setting wrong. Writes curves.png into
the folder (docs/ if none is given) and, where the folder holds choosing.md, the table of the runs into it. A minute on
one core. The learning rates are those of a tiny model: what carries over is the shape of a curve, not the number.
"""

import argparse
import copy
import io
import random
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from matplotlib.figure import Figure
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    ProgressCallback,
    set_seed,
)
from transformers.utils import logging

from fastkto import KTOConfig, KTOTrainer

NOUNS = "salt iron moss rain oak clay wind fern mint rust snow sand"
TRAITS = "hard soft warm cold old new dark pale wet dry sharp plain thin thick light heavy rare loud calm red grey blue"
REST = "<pad> <end> describe ? well may be is and or ."
MISLABELLED = 0.05  # people err


class Run(NamedTuple):
    """One training run: how many rows of each class, and what differs from `RIGHT`."""

    desirable: int
    undesirable: int
    changes: dict[str, Any]


RIGHT = {"learning_rate": 1.3e-4, "beta": 0.1, "per_device_train_batch_size": 16}
EVEN, RARE = (96, 96), (24, 168)  # rows of each class
BY_CLASS = {"train_sampling_strategy": "stratified"}
RUNS = {
    "right": Run(*EVEN, {}),
    "learning rate × 30": Run(*EVEN, {"learning_rate": 30 * 1.3e-4}),
    "learning rate / 30": Run(*EVEN, {"learning_rate": 1.3e-4 / 30}),
    "β × 20": Run(*EVEN, {"beta": 2.0}),
    "β / 20": Run(*EVEN, {"beta": 0.005}),
    "micro-batch of 2, 8 accumulated": Run(*EVEN, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}),
    "1 : 7, weight auto": Run(*RARE, BY_CLASS | {"desirable_weight": "auto"}),
    "1 : 7, weights 1 and 1": Run(*RARE, BY_CLASS),
    "1 : 7, batch of 8, stratified": Run(
        *RARE, BY_CLASS | {"desirable_weight": "auto", "per_device_train_batch_size": 8}
    ),
    "1 : 7, batch of 8, shuffled": Run(*RARE, {"desirable_weight": "auto", "per_device_train_batch_size": 8}),
}

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # told apart by every kind of colour vision
LEARNING_RATE = [("right", BLUE), ("learning rate × 30", ORANGE), ("learning rate / 30", GREEN)]
BETA = [("right", BLUE), ("β × 20", ORANGE), ("β / 20", GREEN)]
WEIGHTS = [("1 : 7, weight auto", BLUE), ("1 : 7, weights 1 and 1", ORANGE)]
BATCH = [("right", BLUE), ("micro-batch of 2, 8 accumulated", ORANGE)]
CLASSES = [("1 : 7, batch of 8, stratified", BLUE), ("1 : 7, batch of 8, shuffled", ORANGE)]
PANELS = [
    ("Learning rate: the margin", "rewards/margins", "β · nats", LEARNING_RATE),
    ("Learning rate: KL before the clamp", "kl/raw", "nats", LEARNING_RATE),
    ("β: the margin in nats", "rewards/margins over β", "nats", BETA),
    ("β: the loss", "loss", "mean over rows", BETA),
    ("β: rows that no longer teach", "saturated", "share of rows", BETA),
    ("One-class batches: the loss", "loss", "weighted mean over rows", CLASSES),
    ("Class weights: desirable text", "rewards/chosen", "β · nats", WEIGHTS),
    ("Class weights: the margin", "rewards/margins", "β · nats", WEIGHTS),
    ("Micro-batch: standard error of z0", "kl/stderr", "nats", BATCH),
    ("Micro-batch: the reference point z0", "kl", "nats", BATCH),
]
COLUMNS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins over β", "kl/raw", "kl", "saturated")
WINDOW = 5


def feedback(desirable: int, undesirable: int, seed: int, *, informed: bool = True) -> list[dict]:
    """Answers that say plainly what is so are liked, those that hedge are not, and some labels are wrong."""
    draw, nouns, traits, rows = random.Random(seed), NOUNS.split(), TRAITS.split(), []
    for label in [True] * desirable + [False] * undesirable:
        noun, (trait, first, second) = draw.choice(nouns), draw.sample(traits, 3)
        true = traits[nouns.index(noun) :][:2] if informed else (first, second)
        answer = f" {noun} is {true[0]} and {true[1]} ."
        if label == (draw.random() < MISLABELLED):
            answer = f" well {noun} may be {first} or {second} ."
        rows.append({"prompt": f"describe {trait} {noun} ?", "completion": answer, "label": label})
    return rows


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = " ".join((REST, NOUNS, TRAITS)).split()
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


def pretrained(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A tiny model that answers in either way, as often: where KTO starts, and its reference."""
    set_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size, pad_token_id=0, eos_token_id=1))
    texts = [f"{row['prompt']}{row['completion']} <end>" for row in feedback(256, 256, seed=1, informed=False)]
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        some = torch.randperm(len(ids))[:64]
        labels = ids[some].masked_fill(mask[some] == 0, -100)
        model(input_ids=ids[some], attention_mask=mask[some], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def train(run: Run, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> list[dict]:
    """The log lines of a run, one an optimizer step."""
    with tempfile.TemporaryDirectory() as folder:
        config = KTOConfig(
            output_dir=folder,
            **RIGHT | run.changes,
            max_steps=steps,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            gradient_checkpointing=False,
            use_cpu=True,
            disable_tqdm=True,
            seed=0,
        )
        trainer = KTOTrainer(
            copy.deepcopy(model),
            args=config,
            train_dataset=datasets.Dataset.from_list(feedback(run.desirable, run.undesirable, seed=0)),
            processing_class=tokenizer,
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    for line in lines:
        if "rewards/margins" in line:
            line["rewards/margins over β"] = line["rewards/margins"] / config.beta
    return lines


def draw(logs: dict[str, list[dict]]) -> Figure:
    figure = Figure(figsize=(11, 17), layout="constrained")
    for ax, (title, metric, unit, curves) in zip(figure.subplots(5, 2).flat, PANELS, strict=True):
        for name, colour in curves:
            points = [(line["step"], line[metric]) for line in logs[name] if metric in line]
            x, y = [step for step, _ in points], [value for _, value in points]
            ax.plot(x, y, color=colour, alpha=0.3, linewidth=0.9)
            means = [sum(y[max(0, end - WINDOW) : end]) / min(end, WINDOW) for end in range(1, len(y) + 1)]
            ax.plot(x, means, color=colour, linewidth=2, label=name)
        ax.set_title(f"{title} ({metric})", loc="left", fontsize=11)
        ax.set(xlabel="optimizer step", ylabel=unit)
        if curves is LEARNING_RATE:  # decades apart
            ax.set_yscale("symlog", linthresh=1)
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.legend(frameon=False, fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def table(logs: dict[str, list[dict]]) -> str:
    """Markdown: each run's means over the last quarter of its steps."""
    rows = [("run", *(f"`{name}`" if " " not in name else "margin in nats" for name in COLUMNS))]
    rows.append(("---", *["---:"] * len(COLUMNS)))
    for name, lines in logs.items():
        last = lines[-max(1, len(lines) // 4) :]
        means = [[line[key] for line in last if key in line] for key in COLUMNS]
        rows.append((name, *(f"{sum(y) / len(y):.2f}" if y else "" for y in means)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs")
    options = parser.parse_args()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    tokenizer = word_tokenizer()
    model = pretrained(tokenizer)
    logs = {name: train(run, model, tokenizer, options.steps) for name, run in RUNS.items()}
    picture = io.BytesIO()
    draw(logs).savefig(picture, dpi=90)
    Image.open(picture).quantize(64).save(options.out / "curves.png", optimize=True)  # a quarter of the size
    print(table(logs))
    page = options.out / "choosing.md"
    if page.is_file():
        marked = re.compile(r"(<!-- curves -->\n).*?(<!-- /curves -->)", re.DOTALL)
        text = marked.sub(lambda found: f"{found[1]}{table(logs)}\n{found[2]}", page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
