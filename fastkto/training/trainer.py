"""`KTOTrainer`: KTO on Hugging Face's `Trainer`, with the constructor, fields and metric names of TRL 1.16."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_utils import EvalPrediction, has_length

from fastkto.batch.packed import padded_targets
from fastkto.batch.targets_and_kl import weight_of
from fastkto.config import KTOConfig
from fastkto.disk import no_folder_left
from fastkto.engines import refuse_data_parallel, running
from fastkto.errors import InputError
from fastkto.head.backends import choose
from fastkto.losses.kto import LossSettings, one_for_zero
from fastkto.pairs import PairableSampler
from fastkto.rows.tokens import COLUMNS, WEIGHT
from fastkto.step.metrics import Meter, step_sums
from fastkto.step.micro_step import kto_step
from fastkto.training.assemble import assemble
from fastkto.training.batching import pairable_sampler
from fastkto.training.callbacks import LogAtCheckpoint, MetricsFile, SamplerEpoch
from fastkto.training.checks import check_trained, say_rate
from fastkto.training.faults.collapse import CollapseWatch
from fastkto.training.faults.finite import FiniteWatch
from fastkto.training.faults.interruption import Interruption
from fastkto.training.faults.out_of_memory import naming_the_batch
from fastkto.training.faults.start import StartCheck
from fastkto.training.loading import (
    check_reference,
    check_saves,
    config_for,
    keep_float32_outputs,
    load_policy,
    load_tokenizer,
    policy_and_reference,
    vocabulary_of,
)
from fastkto.training.output.display.notebook import shown_by
from fastkto.training.output.display.progress import tokens_so_far
from fastkto.training.output.record import RunRecord
from fastkto.training.output.resumable import ResumableTrainer
from fastkto.training.prepare import prepare, prepare_eval

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig

    Rows: TypeAlias = Dataset | IterableDataset


class KTOTrainer(ResumableTrainer):
    """Trains a causal language model on rows of prompt, completion and a thumbs-up / thumbs-down label.

    Args:
        model: a model id or folder, a `PreTrainedModel`, or a `PeftModel`.
        ref_model: the reference; if None a frozen copy of `model` as it is now, the model with its new adapter off
            (`peft_config`), or a frozen copy of the adapter (a `PeftModel` passed in).
        args: `KTOConfig`.
        data_collator: replaces the packing or padding collator; must return the keys of one of them.
        train_dataset: rows as `fastkto.rows.normalise` takes them, or tokenised (`prompt_ids`, `completion_ids`,
            `label`, and `weight` where rows have one); streaming needs `max_steps`.
        eval_dataset: the same, or a dict of them.
        processing_class: the tokenizer; the model's own if None.
        compute_metrics: gets the rows' rewards as `predictions` and their labels as `label_ids`.
        callbacks, optimizers: as in `Trainer`.
        quantization_config: for a model given by id.
        peft_config: wraps the model in a new adapter.

    Raises:
        ValueError: for arguments, rows and weights that cannot be trained on, before anything is written.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the weights of the whole optimizer step
    args: KTOConfig
    model: Any
    processing_class: Any
    sampler: PairableSampler | None = None
    """Of the epochs in training; None before, and for a stream."""
    _signature_columns: list[str] | None  # type: ignore[assignment]

    def __init__(
        self,
        model: "str | PreTrainedModel | Any",
        ref_model: PreTrainedModel | None = None,
        args: KTOConfig | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: "Rows | None" = None,
        eval_dataset: "Rows | dict[str, Rows] | None" = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
    ) -> None:
        args = config_for(args, model)
        if train_dataset is None:
            raise InputError("train_dataset", None, "a dataset of feedback rows", "Pass one; `fastkto data` shows it.")
        check_reference(ref_model, model)
        refuse_data_parallel(args)
        choose(args.head_backend, args.device)
        set_seed(args.seed)
        source, model = model if isinstance(model, str) else None, load_policy(model, args, quantization_config)
        tokenizer = load_tokenizer(processing_class, model, args)
        check_saves(model)
        self._vocabulary = vocabulary_of(model)
        given = train_dataset, tokenizer, args, self._vocabulary
        train = prepare(*given, name="train", batch_size=args.per_device_train_batch_size)
        self.data_lines = train.summary.lines() if train.summary else []
        self.settings = LossSettings(args.beta, train.desirable_weight(args), args.undesirable_weight, args.loss_type)
        evals = prepare_eval(eval_dataset, tokenizer, args, self._vocabulary)
        model, reference_model, start = policy_and_reference(model, ref_model, args, peft_config, source)
        check_trained(model, optimizers[0])
        say_rate(model, args)
        self._finite, self._interruption = FiniteWatch(args.on_nonfinite), Interruption()
        self._start = StartCheck(start, args)
        watches = [MetricsFile(), self._finite, self._interruption, LogAtCheckpoint(), CollapseWatch()]
        with no_folder_left(args.output_dir):
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train.rows,
                eval_dataset=evals,
                processing_class=tokenizer,
                compute_metrics=compute_metrics,
                callbacks=[*watches, SamplerEpoch(self), *(callbacks or [])],
                optimizers=optimizers,
            )
            self._progress = shown_by(self)
            self.model_accepts_loss_kwargs = True
            self.accelerator.gradient_accumulation_steps = 1  # the loss has its share; older Trainers divide once more
            keep_float32_outputs(self.accelerator)
            self.record = RunRecord(args, self.train_dataset, model, reference_model, start, plain=train.plain)
            self.record.agree(self.accelerator)
            self._finite.attach(self.accelerator)
            with running(self.model, self.accelerator):  # the probe, and the cache where it is filled
                policy = self.model, reference_model, start, self.train_dataset, evals, data_collator, args, tokenizer
                parts = assemble(*policy, self.accelerator)
                self._model_run, self.data_collator, self.reference, moving, self.aux_loss_coef = parts
                if moving is not None:
                    self.add_callback(moving)
                self.kept = [kept for kept in (moving, start) if kept is not None]
                self._meters = {kind: Meter(self._sum_over_ranks) for kind in ("train", "eval")}
                if self.reference.cache is not None:
                    self._fill_cache()

    @property
    def ref_model(self) -> Any:
        """The second model that is the reference, as TRL has it; None where the policy is its own."""
        return self.reference.model

    @property
    def aux_loss_enabled(self) -> bool:
        """Whether a mixture of experts' auxiliary loss is added, as TRL has it."""
        return self.aux_loss_coef > 0

    def train(self, resume_from_checkpoint: "str | bool | None" = None, *args: Any, **kwargs: Any) -> Any:
        """Train; a checkpoint to resume from is looked at before anything else happens."""
        checkpoint = self.found(resume_from_checkpoint)
        self._meters["train"].clear()  # of steps after the last log line of an earlier call
        self.reference.policy_moved = True
        with self.owning_output(checkpoint), self._interruption, self._progress:
            result = super().train(checkpoint, *args, **kwargs)
        if self._finite.error is not None:
            raise self._finite.error
        self._interruption.leave(self.args, self.state)
        return result

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | float | None = None,
    ) -> Any:
        """Loss of a micro-batch, eq. (6): the sum over its rows divided by the weights of the whole optimizer step."""
        reference = self.reference(inputs)
        reduce = self._sum_over_ranks if self.accelerator.num_processes > 1 else None
        given = self._model_run._replace(model=model), inputs, reference, self.settings
        out, aux_loss = kto_step(*given, num_rows=num_items_in_batch, reduce=reduce)
        sums = step_sums(out, inputs, aux_loss)
        loss = out.loss
        if aux_loss is not None:
            share = 1.0 if num_items_in_batch is None else weight_of(inputs) / one_for_zero(num_items_in_batch)
            loss = loss + self.aux_loss_coef * share * aux_loss
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over ranks
        if self.model.training:
            self._start(out, self.settings.beta, self.state)
            loss, bad = self._finite.guard(loss, out, reference.logps, inputs["row_ids"])
            if self.args.on_nonfinite == "skip":  # what is left out of the weights is left out of the log
                sums = torch.where(bad, torch.zeros_like(sums), sums)
        self._meters["train" if self.model.training else "eval"].add(sums)
        return (loss, out) if return_outputs else loss

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """The micro-batches of one optimizer step and the weights of their rows, added up over all ranks."""
        if self.state.global_step >= self.state.max_steps:  # resumed at its end, where the Trainer would step again
            return [], 0
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows = sum(map(weight_of, batches))
        if self.accelerator.num_processes > 1:
            return batches, self._interruption.count(self._sum_over_ranks(self._interruption.vote(rows, device)))
        return batches, rows

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """A step of the Trainer, its activations in CPU memory with `activation_offloading`."""
        offload: Any = contextlib.nullcontext()
        if self.args.activation_offloading:
            offload = torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())
        with naming_the_batch(inputs, self.args), offload:
            loss = super().training_step(model, inputs, *args, **kwargs)
        return loss.nan_to_num(0.0) if self.args.on_nonfinite == "skip" else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Loss of an evaluation batch; with `compute_metrics` also each row's reward and label."""
        if "inputs" in self.args.include_for_metrics and "sequences" in inputs:  # which the caller hands to them
            inputs["input_ids"] = padded_targets(inputs, self.processing_class.pad_token_id)
        inputs = self._prepare_inputs(inputs)
        # autocast: a model that has not been through `train` is not wrapped in it, the reference always is
        naming = naming_the_batch(inputs, self.args)
        with naming, torch.no_grad(), self.accelerator.autocast(), self.compute_loss_context_manager():
            loss, out = self.compute_loss(model, inputs, return_outputs=True)
        loss = loss * (weight_of(inputs) / len(inputs["label"]))  # the loop averages over rows
        if prediction_loss_only:
            return loss, None, None
        return loss, out.rewards, inputs["label"]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's loop; its metrics gain ours, so that `metric_for_best_model` finds them."""
        self._meters["eval"].clear()
        output: Any = super().evaluation_loop(*args, **kwargs)
        figures = {**self._meters["eval"].flush(), "num_tokens": tokens_so_far(self.state)}
        prefix = kwargs.get("metric_key_prefix", "eval")
        if (name := f"{prefix}_loss") in output.metrics and self._meters["eval"].mean_weight is not None:
            output.metrics[name] /= self._meters["eval"].mean_weight.item() or 1
        output.metrics.update({f"{prefix}_{name}": value for name, value in figures.items()})
        return output

    def evaluate(
        self,
        eval_dataset: "Rows | dict[str, Rows] | str | None" = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate; a dataset passed here is prepared as one passed to the constructor, and idempotently so."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = prepare_eval(eval_dataset, self.processing_class, self.args, self._vocabulary)
        prepared: Any = eval_dataset
        return super().evaluate(prepared, ignore_keys, metric_key_prefix)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Batches for `predict`, whose dataset is prepared as one passed to `evaluate`."""
        given = test_dataset, self.processing_class, self.args, self._vocabulary
        return super().get_test_dataloader(prepare_eval(*given, name="test"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's log line, with the figures of the steps since the last one."""
        if "loss" in logs and (figures := self._meters["train"].flush()):
            figures["num_tokens"] += tokens_so_far(self.state)
            logs.update(figures | self._finite.figures())
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if rows is None or not has_length(rows):
            return None
        # not args.per_device_train_batch_size, which auto_find_batch_size leaves as it was
        self.sampler = pairable_sampler(rows, self._train_batch_size, self.args.train_sampling_strategy, self.args)
        return self.sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if eval_dataset is None or not has_length(eval_dataset):
            return None
        return pairable_sampler(eval_dataset, self.args.per_device_eval_batch_size, "sequential", self.args)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [*COLUMNS, WEIGHT]

    def _fill_cache(self) -> None:
        """Score every micro-batch of the data with the reference, before training changes the policy."""
        loaders = [self.get_train_dataloader()]
        if self.eval_dataset is not None:
            names = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else [None]
            loaders += [self.get_eval_dataloader(name) for name in names]
        batches = (batch for loader in loaders for batch in loader)
        self.reference.fill(batches, lambda batch: naming_the_batch(batch, self.args))

    def _sum_over_ranks(self, x: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(x, reduction="sum")
