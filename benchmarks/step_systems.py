"""The trainers that `step.py` times: each takes the same rows in the same order, with the same settings.

Legend: N scored positions, D hidden.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from rows import rows
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

import fastkto
from fastkto.backends import choose
from fastkto.backends.base import Wanted
from fastkto.head import prepare
from fastkto.trunk import Scored, run


class SFTTrainer(fastkto.KTOTrainer):
    """Cross entropy on the target completions by KTO's own trunk, packing and head: what its price is counted from."""

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
        """The mean over the completion tokens of the batch."""
        self.tokens = inputs["num_tokens"]

        def cross_entropy(scored: Scored) -> torch.Tensor:
            weight = scored.head.module.weight
            return _CrossEntropy.apply(scored.hidden, weight, scored.targets, scored.cu_seqlens)

        return run(self._forward._replace(model=model), inputs, cross_entropy)[0]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's line and the tokens of the step, without KTO's figures."""
        Trainer.log(self, logs | {"num_tokens": self.tokens}, start_time)


class _CrossEntropy(torch.autograd.Function):
    """The mean over all positions; logits become gradients as they are formed, as in `fused_linear_kto`."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, bounds: list[int]
    ) -> torch.Tensor:
        head, _ = prepare(hidden_ND, weight_VD, targets_N, None, None, 1.0)
        share = -1.0 / len(targets_N)

        def coefficients(rows: slice, logps_N: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
            return logps_N.new_full((len(bounds) - 1,), share)

        backend = choose("auto", hidden_ND.device)
        out, grads = backend.forward_backward(head, bounds, coefficients, Wanted(True, True, False), stats=False)
        ctx.save_for_backward(grads.hidden_ND, grads.weight_VD)
        return out.logps_N.sum() * share

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_ND, weight_VD = ctx.saved_tensors
        return hidden_ND * grad, weight_VD * grad, None, None


class Case:
    """One model, its rows and the settings that every system shares."""

    def __init__(self, options: Any, callback: Any) -> None:
        self.options, self.callback = options, callback
        self.model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.rows = Dataset.from_list(rows(options.data, self.tokenizer, options.seed))

    def config(self, kind: type, **changes: Any) -> Any:
        """The same settings for each kind of configuration."""
        return kind(
            output_dir=str(Path(self.options.scratch) / self.options.worker),
            per_device_train_batch_size=self.options.batch,
            max_steps=self.options.steps,
            learning_rate=self.options.learning_rate,
            train_sampling_strategy="sequential",
            gradient_checkpointing=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            **{"max_length": self.options.max_length} | changes,
        )

    def trainer(self, kind: type, config: Any, dataset: Dataset | None = None, **arguments: Any) -> Trainer:
        """A trainer of this kind, which waits for the word before each step."""
        trainer: Trainer = kind(
            self.model,
            args=config,
            train_dataset=self.rows if dataset is None else dataset,
            processing_class=self.tokenizer,
            callbacks=[self.callback],
            **arguments,
        )
        return trainer


def kto(case: Case) -> Trainer:
    """A second live model is the reference."""
    return case.trainer(fastkto.KTOTrainer, case.config(fastkto.KTOConfig), ref_model=copy.deepcopy(case.model))


def kto_cached(case: Case) -> Trainer:
    """The reference's log-probs are on disk; only the rows that the steps take, so that scoring them ends soon."""
    taken = _tokenised(case).select(range(case.options.batch * case.options.steps))
    return case.trainer(fastkto.KTOTrainer, case.config(fastkto.KTOConfig, precompute_ref_log_probs=True), taken)


def sft(case: Case) -> Trainer:
    """APO has no KL rows, and its reference is never asked."""
    return case.trainer(SFTTrainer, case.config(fastkto.KTOConfig, loss_type="apo_zero_unpaired"))


def _tokenised(case: Case) -> Dataset:
    """The rows that are trained on, in their order, as token ids."""
    dataset: Dataset = sft(Case(case.options, case.callback)).train_dataset
    return dataset


def trl_kto(case: Case) -> Trainer:
    import trl

    return case.trainer(trl.KTOTrainer, case.config(trl.KTOConfig), ref_model=copy.deepcopy(case.model))


def trl_kto_compact(case: Case) -> Trainer:
    """Scores completion positions only, as TRL does on CUDA; on a CPU it scores every position."""
    import trl.trainer.utils

    trl.trainer.utils._use_triton = lambda device: True
    return trl_kto(case)


def trl_sft(case: Case) -> Trainer:
    """TRL's own SFT without padding, on the token ids of ours: padding_free asks for rows that are cut already."""
    import trl

    def cut(row: dict[str, Any]) -> dict[str, list[int]]:
        ids = (row["prompt_ids"] + row["completion_ids"])[: case.options.max_length]
        start = len(row["prompt_ids"])
        return {"input_ids": ids, "labels": [-100] * start + ids[start:]}

    tokenised = _tokenised(case)
    dataset = tokenised.map(cut, remove_columns=tokenised.column_names)
    return case.trainer(trl.SFTTrainer, case.config(trl.SFTConfig, padding_free=True, max_length=None), dataset)


SYSTEMS: dict[str, Callable[[Case], Trainer]] = {
    "fastkto": kto,
    "fastkto-cached": kto_cached,
    "sft": sft,
    "trl": trl_kto,
    "trl-compact": trl_kto_compact,
    "trl-sft": trl_sft,
}


def build(options: Any, callback: Any) -> Trainer:
    """The trainer of the system that this process is."""
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("highest")
    transformers.utils.logging.set_verbosity_error()
    return SYSTEMS[options.worker](Case(options, callback))
