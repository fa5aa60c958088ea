"""The rows that a step is timed on: real feedback, or text of the same lengths that needs no data file.

    python benchmarks/rows.py --data FILE    # writes lengths.json from the rows of FILE

`lengths.json` holds the prompt and completion tokens and the label of each of 300 rows of real feedback under
SmolLM2's tokenizer. A row of n tokens is n seeded words that the tokenizer takes as one token each.
"""

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

LENGTHS = Path(__file__).with_name("lengths.json")


def rows(path: Path | None, tokenizer: Any, seed: int) -> list[dict[str, Any]]:
    """Prompt, completion and label of every row, shuffled."""
    found = of_lengths(tokenizer, seed) if path is None else of_file(path)
    random.Random(seed).shuffle(found)
    return found


def of_file(path: Path) -> list[dict[str, Any]]:
    """Rows of a .json or .jsonl file with `prompt` and `completion`, or with `messages`."""
    text = path.read_text(encoding="utf-8")
    examples = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    converted = [
        {"prompt": e["messages"][:-1], "completion": e["messages"][-1:], "label": e["label"]} if "messages" in e else e
        for e in examples
    ]
    return [{key: row[key] for key in ("prompt", "completion", "label")} for row in converted]


def of_lengths(tokenizer: Any, seed: int) -> list[dict[str, Any]]:
    """Rows of seeded words; a trainer appends the end-of-sequence token, so a completion has one word less."""
    generator = random.Random(seed)
    found = [re.fullmatch("Ġ([a-z]{3,})", token) for token in sorted(tokenizer.get_vocab())]
    candidates = [f" {word[1]}" for word in found if word]
    words = [word for word in candidates if len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1]

    def text(tokens: int) -> str:
        return "".join(generator.choices(words, k=tokens))

    return [
        {"prompt": text(prompt), "completion": text(completion - 1), "label": label}
        for prompt, completion, label in json.loads(LENGTHS.read_text(encoding="utf-8"))
    ]


def main() -> None:
    """Write lengths.json."""
    from transformers import AutoTokenizer

    from fastkto.encoding import tokenize_row

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True, help="whose tokenizer counts")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    lengths = []
    for row in of_file(options.data):
        prompt, completion = tokenize_row(row, tokenizer)
        lengths.append([len(prompt), len(completion), row["label"]])
    lines = ",\n".join(json.dumps(row) for row in lengths)
    LENGTHS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
