"""Make the demo's feedback: real answers of the real model, a thumb up or down on each by a strict rule.

Each topic is asked for twice at T=0.7, barely ("Describe salt.", which the model answers at length) and with
" Answer in one short sentence." behind it. Both answers are stored under the bare question, so what is liked is
what the model can already do, and only has to do unasked.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from base_model import load
from generate import answers
from rule import fault

HERE = Path(__file__).parent
HINT = " Answer in one short sentence."
MAX_NEW_TOKENS = 56
BATCH = 96
SIZES = {"train": (96, 144), "held_out": (24, 24)}  # rows kept, desirable and undesirable


def question(topic: str) -> str:
    return f"Describe {topic}."


def topics(part: str) -> list[str]:
    """The topics of "train" or of "held_out"; no topic is in both."""
    return json.loads((HERE / "topics.json").read_text())[part]


def feedback(model, tokenizer, part: str) -> list[dict]:
    """Labelled rows for one part, in the form `fastkto train` reads."""
    rows = []
    for hint in ("", HINT):
        for start in range(0, len(names := topics(part)), BATCH):
            batch = names[start : start + BATCH]
            sampled = answers(
                model,
                tokenizer,
                [question(topic) + hint for topic in batch],
                max_new_tokens=MAX_NEW_TOKENS,
                temperature=0.7,
            )
            rows += [_row(topic, answer) for topic, answer in zip(batch, sampled, strict=True)]
    return rows


def _row(topic, answer) -> dict:
    return {
        "prompt": [{"role": "user", "content": question(topic)}],
        "completion": [{"role": "assistant", "content": answer.text}],
        "label": fault(topic, answer.text, len(answer.ids), answer.finished) is None,
        "truncated": not answer.finished,
    }


def choose(rows: list[dict], desirable: int, undesirable: int, seed: int) -> list[dict]:
    """That many rows of each label, drawn and ordered by `seed`."""
    draw = random.Random(seed)
    chosen = []
    for label, count in ((True, desirable), (False, undesirable)):
        of_label = [row for row in rows if row["label"] is label]
        if len(of_label) < count:
            raise RuntimeError(f"the model gave {len(of_label)} rows with label {label}, {count} are needed")
        chosen += draw.sample(of_label, count)
    draw.shuffle(chosen)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model id or folder; default: SmolLM2-135M-Instruct from its package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for train.jsonl and held_out.jsonl")
    options = parser.parse_args()
    model, tokenizer = load(options.model)
    for part, sizes in SIZES.items():
        torch.manual_seed(options.seed)
        rows = choose(feedback(model, tokenizer, part), *sizes, options.seed)
        path = options.out / f"{part}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"{path}: {sum(row['label'] for row in rows)} of {len(rows)} rows desirable")


if __name__ == "__main__":
    main()
