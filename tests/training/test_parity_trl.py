"""KTOTrainer against TRL 1.16's, step by step, on rows, order, pairs and seed that are the same.

The policy starts a few SFT steps away from the reference: with a fresh one TRL logs kl = 0 on every step.
"""

import copy
import json

import pytest
import torch
from datasets import Dataset
from parity import STEPS, compare, spy_on_k
from tiny import tiny_llama, tiny_tokenizer

import fastkto

trl = pytest.importorskip("trl", reason="the test extra brings TRL, the peer to compare with")
peft = pytest.importorskip("peft", reason="the test extra brings peft")

if trl.__version__ != "1.16.0":
    pytest.skip(f"parity is claimed for TRL 1.16.0, this is {trl.__version__}", allow_module_level=True)

ROWS, BATCH, BETA = 48, 4, 0.1
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def rows() -> Dataset:
    """Alternating labels: each micro-batch has both classes alike, so means of means are means."""
    words = ["salt", "iron", "moss", "rain", "oak", "clay", "wind", "fern", "mint", "rust"]
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"{words[i % 10]} {i}"}],
                "completion": [{"role": "assistant", "content": f"{words[(i * 3) % 10][: 1 + i % 4]}"}],
                "label": i % 2 == 0,
            }
            for i in range(ROWS)
        ]
    )


def sft(model, steps=12, lr=3e-3):
    """A few steps on the completions: k becomes positive, or with a negative lr (ascent) negative."""
    tokenizer = tiny_tokenizer()
    ids = [
        tokenizer.apply_chat_template([*row["prompt"], *row["completion"]])["input_ids"]
        for row in rows().to_list()[:24]
    ]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=abs(lr))
    for _ in range(steps):
        (model(**batch, labels=labels).loss * (1 if lr > 0 else -1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


CASES = {
    "full": {},
    "full, live copy as reference": {"own_reference": True},
    "lora": {"lora": True, "learning_rate": 3e-3},
    "class weights": {"desirable_weight": 1.3, "undesirable_weight": 0.7},
    "apo_zero_unpaired": {"loss_type": "apo_zero_unpaired"},
    "cached reference": {"precompute_ref_log_probs": True},
    "cached reference, lora": {"precompute_ref_log_probs": True, "lora": True, "learning_rate": 3e-3},
    "gradient accumulation": {"gradient_accumulation_steps": 2},
    "split forwards": {"max_tokens_per_forward": 40},
}


def run(
    kind,
    tmp_path,
    *,
    lora=False,
    own_reference=False,
    max_tokens_per_forward=None,
    sft_lr=3e-3,
    learning_rate=4e-4,
    **config,
):
    """Six steps with one of the trainers; its log lines, and k before the clamp of each micro-step."""
    library = {"ours": fastkto, "trl": trl}[kind]
    if kind == "ours":
        config["max_tokens_per_forward"] = max_tokens_per_forward
    base = tiny_llama(seed=1)
    args = library.KTOConfig(
        output_dir=str(tmp_path / kind),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        logging_steps=1,
        beta=BETA,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=3,
        **config,
    )
    kwargs = {"args": args, "train_dataset": rows(), "processing_class": tiny_tokenizer()}
    if lora:
        trainer = library.KTOTrainer(base, peft_config=peft.LoraConfig(**LORA), **kwargs)
        torch.manual_seed(0)
        tuned = sft(peft.get_peft_model(tiny_llama(seed=1), peft.LoraConfig(**LORA)), lr=3e-2)
        peft.set_peft_model_state_dict(trainer.model, peft.get_peft_model_state_dict(tuned))
    else:
        policy = sft(copy.deepcopy(base), lr=sft_lr)
        if own_reference:
            policy.save_pretrained(tmp_path / "start")
            policy = type(policy).from_pretrained(tmp_path / "start", dtype="float32")
            trainer = library.KTOTrainer(policy, **kwargs)
        else:
            trainer = library.KTOTrainer(policy, ref_model=base, **kwargs)
    trainer.accelerator.gradient_accumulation_steps = 1  # transformers 5.5 divides TRL's loss once more
    raw = spy_on_k(kind, trainer)
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line], raw


@pytest.mark.parametrize("case", CASES)
def test_equals_trl(case, tmp_path):
    options = CASES[case]
    ours, raw_ours = run("ours", tmp_path, **options)
    theirs, raw_theirs = run("trl", tmp_path, **options)
    with_kl = options.get("loss_type", "kto") == "kto"
    compare(ours, theirs, raw_ours, raw_theirs, with_kl=with_kl)
    moved = abs(theirs[-1]["rewards/margins"] - theirs[0]["rewards/margins"]) / BETA
    assert moved > 0.1, "the learning rate moves nothing"
    if with_kl and not options.get("own_reference"):
        assert all(line["kl"] > 0.1 for line in theirs), "kl is clamped: the comparison would be vacuous"


NEGATIVE_K = {"sft_lr": -3e-4}


def test_equals_trl_where_the_clamp_bites(tmp_path):
    ours, raw_ours = run("ours", tmp_path, **NEGATIVE_K)
    theirs, raw_theirs = run("trl", tmp_path, **NEGATIVE_K)
    compare(ours, theirs, raw_ours, raw_theirs)
    assert max(raw_theirs) < -0.1


def rotated_by_two(monkeypatch):
    monkeypatch.setattr(
        "fastkto.batch.targets_and_kl.pair",
        lambda keys, conversations=None: [(i - 2) % len(keys) for i in range(len(keys))],
    )


def reference_for_the_kl_rows_only(monkeypatch):
    from fastkto.step import Reference

    call = Reference.__call__
    monkeypatch.setattr(
        Reference, "__call__", lambda self, batch: call(self, batch)._replace(logps=torch.zeros(len(batch["label"])))
    )


def no_clamp(monkeypatch):
    monkeypatch.setattr("fastkto.head.backends.loss_terms.clamped_mean", lambda both: both[0] / both[1])


@pytest.mark.parametrize(
    ("fault", "options"), [(rotated_by_two, {}), (reference_for_the_kl_rows_only, {}), (no_clamp, NEGATIVE_K)]
)
def test_a_planted_fault_is_seen(fault, options, tmp_path, monkeypatch):
    theirs, raw_theirs = run("trl", tmp_path, **options)
    fault(monkeypatch)
    ours, raw_ours = run("ours", tmp_path, **options)
    with pytest.raises(AssertionError, match="instead of"):
        compare(ours, theirs, raw_ours, raw_theirs)


def test_log_lines_have_trls_names(tmp_path):
    ours, _ = run("ours", tmp_path)
    theirs, _ = run("trl", tmp_path)
    assert set(theirs[0]) <= set(ours[0])
    on_disk = [json.loads(line) for line in (tmp_path / "ours" / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in on_disk if "loss" in line] == ours
