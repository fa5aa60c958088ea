"""The trainers that are timed: each takes the same rows in the same order, with the same settings."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from fastkto.bench.case import Case
from fastkto.bench.sft import SFTTrainer
from fastkto.config import KTOConfig
from fastkto.errors import require
from fastkto.training import KTOTrainer
from fastkto.training.loading import vocabulary_of
from fastkto.training.prepare import prepare


class LoadedCase:
    """A case with its model and tokenizer loaded, and the callback that waits for the word before each step."""

    def __init__(self, case: Case, callback: Any, folder: str) -> None:
        self.case, self.callback, self.folder = case, callback, folder
        self.model = AutoModelForCausalLM.from_pretrained(case.model, dtype=getattr(torch, case.dtype))
        self.tokenizer = AutoTokenizer.from_pretrained(case.model)
        self.rows = require("datasets", "train").Dataset.from_list(case.texts(self.tokenizer))

    def config(self, kind: type, **changes: Any) -> Any:
        """The same settings for each kind of configuration."""
        case = self.case
        return kind(
            output_dir=self.folder,
            per_device_train_batch_size=case.batch,
            max_steps=case.steps,
            learning_rate=case.learning_rate,
            train_sampling_strategy="sequential",
            gradient_checkpointing=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=case.device == "cpu",
            bf16=case.bf16,
            disable_tqdm=True,
            **{"max_length": case.max_length} | changes,
        )

    def ours(self, kind: type, rows: Any = None, **changes: Any) -> Trainer:
        """A trainer on our trunk."""
        return self.trainer(kind, self.config(KTOConfig, **self.case.settings | changes), rows)

    def trainer(self, kind: type, config: Any, rows: Any = None, **arguments: Any) -> Trainer:
        """A trainer of this kind, with a new adapter where the case has one."""
        if self.case.use_peft:
            arguments["peft_config"] = require("peft", "peft").LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32)
        trainer: Trainer = kind(
            self.model,
            args=config,
            train_dataset=self.rows if rows is None else rows,
            processing_class=self.tokenizer,
            callbacks=[self.callback],
            **arguments,
        )
        return trainer

    def reference(self) -> dict[str, Any]:
        """A second live model, where no adapter makes the first its own reference."""
        return {} if self.case.use_peft else {"ref_model": copy.deepcopy(self.model)}

    def tokenised(self) -> Any:
        """The rows that are trained on, in their order, as token ids."""
        given = self.rows, self.tokenizer, self.config(KTOConfig), vocabulary_of(self.model)
        return prepare(*given, name="train", batch_size=self.case.batch).rows


def kto(loaded: LoadedCase) -> Trainer:
    """The reference is live."""
    return loaded.ours(KTOTrainer)


def kto_cached(loaded: LoadedCase) -> Trainer:
    """The reference's log-probs are on disk; only the rows that the steps take, so that scoring them ends soon."""
    taken = loaded.tokenised().select(range(loaded.case.batch * loaded.case.steps))
    return loaded.ours(KTOTrainer, taken, precompute_ref_log_probs=True)


def sft(loaded: LoadedCase) -> Trainer:
    """APO has no KL rows; the loss is of one forward."""
    changes = {"loss_type": "apo_zero_unpaired", "precompute_ref_log_probs": True, "max_tokens_per_forward": None}
    return loaded.ours(SFTTrainer, **changes)


def trl_kto(loaded: LoadedCase) -> Trainer:
    """TRL as shipped: on a CPU it scores every position."""
    trl = require("trl", "bench")
    return loaded.trainer(trl.KTOTrainer, loaded.config(trl.KTOConfig), **loaded.reference())


def trl_kto_compact(loaded: LoadedCase) -> Trainer:
    """Scores completion positions only, as TRL does on CUDA."""
    require("trl", "bench")
    import trl.trainer.utils

    trl.trainer.utils._use_triton = lambda device: True
    return trl_kto(loaded)


def trl_sft(loaded: LoadedCase) -> Trainer:
    """TRL's own SFT without padding, on the token ids of ours: padding_free asks for rows that are cut already."""
    trl, length = require("trl", "bench"), loaded.case.max_length

    def cut(row: dict[str, Any]) -> dict[str, list[int]]:
        ids = (row["prompt_ids"] + row["completion_ids"])[:length]
        start = len(row["prompt_ids"])
        return {"input_ids": ids, "labels": [-100] * start + ids[start:]}

    tokenised = loaded.tokenised()
    rows = tokenised.map(cut, remove_columns=tokenised.column_names)
    return loaded.trainer(trl.SFTTrainer, loaded.config(trl.SFTConfig, padding_free=True, max_length=None), rows)


SYSTEMS: dict[str, Callable[[LoadedCase], Trainer]] = {
    "fastkto": kto,
    "fastkto-cached": kto_cached,
    "sft": sft,
    "trl": trl_kto,
    "trl-compact": trl_kto_compact,
    "trl-sft": trl_sft,
}
SAME_STEP: tuple[tuple[set[str], tuple[str, ...]], ...] = (
    ({"fastkto", "trl", "trl-compact", "fastkto-cached"}, ("num_tokens",)),
    ({"sft", "trl-sft"}, ()),
)
"""Systems that take the same steps: their losses and gradient norms are compared, and figures that must be equal."""


def build(system: str, case: Case, callback: Any, folder: str) -> Trainer:
    """The trainer of a system; what it writes goes to the folder."""
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    torch.set_float32_matmul_precision("highest")
    transformers.utils.logging.set_verbosity_error()
    return SYSTEMS[system](LoadedCase(case, callback, folder))
