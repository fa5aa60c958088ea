"""Rows to a packed batch beside a padded one, in the collator's process: no GPU waits for less than this."""

import json
from pathlib import Path

import pytest

from fastkto.batch import PackingCollator, PaddingCollator

LENGTHS = Path(__file__).parents[1] / "lengths.json"


@pytest.mark.parametrize("collator", [PackingCollator(1024), PaddingCollator(0, 1024)], ids=["packed", "padded"])
@pytest.mark.benchmark(group="collator, 16 rows")
def test_collator(benchmark, collator):
    lengths = [row for row in json.loads(LENGTHS.read_text(encoding="utf-8")) if sum(row[:2]) <= 1024][:16]
    rows = [
        {"prompt_ids": [i + 1] * prompt, "completion_ids": [i + 2] * completion, "label": label}
        for i, (prompt, completion, label) in enumerate(lengths)
    ]
    batch = benchmark(collator, rows)
    assert batch["num_tokens"] == sum(prompt + completion for prompt, completion, _ in lengths)
