"""Six steps of every host on the models and rows of a folder: its own path, or the same with fastkto in it.

Each function builds the host's run and trains; the models are `reference` and `policy`, some steps ahead of it. A host
is imported by its function: only one is installed. Legend: B rows, L padded length.
"""

import importlib
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent), str(HERE.parent / "helpers")]

STEPS, BATCH, LENGTH = 6, 4, 256
CHANGES = {"learning_rate": 5e-6}
KL = 0.5  # nats: Liger's class takes the reference point and does not compute it


def load(folder: Path):
    """A model of the folder, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def train_trl(folder: Path, rows: list[dict], out: Path, *, fastkto: bool) -> None:
    """`trl.KTOTrainer`, of TRL 1.16 or 1.9."""
    from datasets import Dataset
    from trl_runs import config, ours, trl

    renamed = [{"prompt": r["prompt"], "completion": f" {r['answer']}", "label": r["good"]} for r in rows]
    (ours if fastkto else trl).KTOTrainer(
        load(folder / "policy"),
        load(folder / "reference"),
        config(out, max_length=LENGTH, **CHANGES),
        train_dataset=Dataset.from_list(renamed),
        processing_class=AutoTokenizer.from_pretrained(folder / "reference"),
    ).train()


def train_llamafactory(folder: Path, rows: list[dict], out: Path, *, fastkto: bool) -> None:
    """`run_exp` with the host's trainer or ours in its workflow."""
    host = importlib.import_module("test_llamafactory")
    host.write_rows(folder, rows)
    host.workflow.CustomKTOTrainer = host.OURS if fastkto else host.HOST
    host.run_exp(host.arguments(folder, out, cutoff_len=LENGTH, **CHANGES))


def train_ms_swift(folder: Path, rows: list[dict], out: Path, *, fastkto: bool) -> None:
    """`rlhf_main` with the host's trainer or ours in its factory."""
    host = importlib.import_module("test_swift")
    host.write_rows(folder, rows)
    host.TrainerFactory.TRAINER_MAPPING["kto"] = host.OURS if fastkto else host.HOST
    host.rlhf_main(host.arguments(folder, out, max_length=LENGTH, **CHANGES))


def train_axolotl(folder: Path, rows: list[dict], out: Path, *, fastkto: bool) -> None:
    """A YAML, with our line in it or without."""
    host = importlib.import_module("test_axolotl")
    host.write_rows(folder, rows)
    line = {"trainer_cls": host.OURS} if fastkto else {}
    host.train(host.write_config(folder, out, sequence_len=LENGTH, **CHANGES, **line))


def train_liger(folder: Path, rows: list[dict], out: Path, *, fastkto: bool) -> None:
    """Liger's loss class or ours, on the hidden states of both models."""
    from liger_kernel.chunked_loss import LigerFusedLinearKTOLoss

    from fastkto.integrations.liger import FusedLinearKTOLoss

    settings = TrainingArguments(
        str(out),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        logging_steps=1,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        **CHANGES,
    )
    loss_class = FusedLinearKTOLoss if fastkto else LigerFusedLinearKTOLoss
    tokenizer = AutoTokenizer.from_pretrained(folder / "reference")
    LossTrainer(
        load(folder / "policy"),
        settings,
        reference=load(folder / "reference").eval(),
        kto_loss=loss_class(use_ref_model=True, compiled=False),
        data_collator=lambda batch: collate(batch, tokenizer),
        train_dataset=rows,
    ).train()


class LossTrainer(Trainer):
    """The stock trainer with a loss class of Liger's interface, whose sums go to the log."""

    SUMS = ("logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected", "rewards/chosen", "rewards/rejected")

    def __init__(self, *args, reference, kto_loss, **kwargs):
        super().__init__(*args, **kwargs)
        self.reference, self.kto_loss, self.sums = reference, kto_loss, ()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The class's loss; its sums are kept for the log line."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        hidden = model.model(ids, attention_mask=mask).last_hidden_state
        with torch.no_grad():
            reference = self.reference.model(ids, attention_mask=mask).last_hidden_state
        loss, self.sums = self.kto_loss(
            hidden[:, :-1],
            model.lm_head.weight,
            inputs["labels"][:, 1:],
            preference_labels=inputs["good"],
            ref_input=reference[:, :-1],
            ref_weight=self.reference.lm_head.weight,
            kl=torch.tensor(KL),
        )
        return loss

    def log(self, logs, start_time=None):
        """The stock line and the sums."""
        sums = dict(zip(self.SUMS, (x.item() for x in self.sums), strict=True)) if "loss" in logs else {}
        super().log(logs | sums, start_time)


def collate(batch: list[dict], tokenizer) -> dict[str, torch.Tensor]:
    """Rows padded on the right, (B, L); prompts and padding are not scored."""
    prompts = [tokenizer(row["prompt"]).input_ids for row in batch]
    ids = [
        prompt + tokenizer(f" {row['answer']}").input_ids + [tokenizer.eos_token_id]
        for prompt, row in zip(prompts, batch, strict=True)
    ]
    padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding_side="right")
    labels = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
    for row, prompt in zip(labels, prompts, strict=True):
        row[: len(prompt)] = -100
    good = torch.tensor([row["good"] for row in batch])
    return {**padded, "labels": labels, "good": good}
