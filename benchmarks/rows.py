"""The rows that a step is timed on: real feedback, or text of the same lengths that needs no data file.

    python benchmarks/rows.py --data FILE --model DIR    # writes lengths.json from the rows of FILE

`lengths.json` holds the prompt and completion tokens and the label of each of 300 rows of real feedback under
SmolLM2's tokenizer. A row of n tokens is n seeded words that the tokenizer takes as one token each.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from fastkto.bench.case import Case
from fastkto.bench.machine import here

ROOT = Path(__file__).parents[1]
LENGTHS = Path(__file__).with_name("lengths.json")
ON_CPU = {"device": "cpu", "bf16": False}
DEMO_MODEL = ROOT / ".cache" / "SmolLM2-135M-Instruct-from-Q4_1"


def arguments(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """What every benchmark of a step takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO_MODEL))
    parser.add_argument("--data", type=Path, help="real rows; unset: rows of the committed lengths")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--learning_rate", type=float, default=1e-6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.set_defaults(**defaults)
    return parser


def case_of(options: argparse.Namespace, where: dict[str, Any] | None = None) -> Case:
    """The case that these options name, on the GPU if there is one, or where it is said."""
    return Case(
        **{name: getattr(options, name) for name in ("model", "batch", "max_length", "steps", "learning_rate")},
        rows=[] if options.data is None else of_file(options.data),
        lengths=[] if options.data is not None else committed_lengths(),
        threads=options.threads,
        seed=options.seed,
        **(where or here()),
    )


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Of a result file."""
    kept = {name: getattr(options, name) for name in ("batch", "max_length", "seed", "threads", "steps")}
    data = options.data.name if options.data else LENGTHS.name
    return {"model": Path(options.model).name, "data": data, **kept}


def committed_lengths() -> list[tuple[int, int, bool]]:
    """Prompt tokens, completion tokens, label."""
    return [tuple(row) for row in json.loads(LENGTHS.read_text(encoding="utf-8"))]


def of_file(path: Path) -> list[dict[str, Any]]:
    """Rows of a .json or .jsonl file with `prompt` and `completion`, or with `messages`."""
    text = path.read_text(encoding="utf-8")
    examples = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    converted = [
        {"prompt": e["messages"][:-1], "completion": e["messages"][-1:], "label": e["label"]} if "messages" in e else e
        for e in examples
    ]
    return [{key: row[key] for key in ("prompt", "completion", "label")} for row in converted]


def main() -> None:
    """Write lengths.json."""
    from transformers import AutoTokenizer

    from fastkto.rows.templates.encoding import tokenize_row

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
