"""How a KTO trainer evaluates: prepared rows, a loss and figures of them, metrics under the Trainer's names."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import Trainer
from transformers.trainer_utils import has_length

from fastkto.config import KTOConfig
from fastkto.pairs import PairableStream
from fastkto.step.metrics import Meter
from fastkto.training.batching import pairable_sampler
from fastkto.training.faults.out_of_memory import naming_the_batch
from fastkto.training.prepare import Prepared

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    Rows: TypeAlias = Dataset | IterableDataset


class Evaluation(Trainer):
    """The part of `KTOTrainer` that evaluates; what it is built on is declared here."""

    args: KTOConfig
    _meters: dict[str, Meter]
    _prepare_rows: Callable[[Any, str, int], Prepared]

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Loss of an evaluation batch; with `compute_metrics` also each row's reward and label."""
        inputs = self._prepare_inputs(inputs)
        # autocast: a model that has not been through `train` is not wrapped in it, the reference always is
        naming = naming_the_batch(inputs, self.args)
        with naming, torch.no_grad(), self.accelerator.autocast(), self.compute_loss_context_manager():
            loss, out = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        return loss, out.rewards, inputs["label"]

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The Trainer's loop; its metrics gain ours, so that `metric_for_best_model` finds them."""
        self._meters["eval"].clear()
        output: Any = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        figures = {**self._meters["eval"].flush(), "num_tokens": self._num_tokens()}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
        return output

    def _num_tokens(self) -> float:
        """Tokens trained on up to the last log line, those before a resume included."""
        return next((line["num_tokens"] for line in reversed(self.state.log_history) if "num_tokens" in line), 0.0)

    def evaluate(
        self,
        eval_dataset: "Rows | dict[str, Rows] | str | None" = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate; a dataset passed here is prepared as one passed to the constructor, and idempotently so."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._prepare_eval(eval_dataset, self.args)
        prepared: Any = eval_dataset
        return super().evaluate(prepared, ignore_keys, metric_key_prefix)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Batches for `predict`, whose dataset is prepared as one passed to `evaluate`."""
        return super().get_test_dataloader(self._prepare_eval_one(test_dataset, "test", self.args))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if eval_dataset is None or not has_length(eval_dataset):
            return None
        return pairable_sampler(eval_dataset, self.args.per_device_eval_batch_size, "sequential", self.args)

    def _prepare_eval(self, rows: Any, args: KTOConfig) -> Any:
        if rows is None:
            return None
        if isinstance(rows, dict):
            return {name: self._prepare_eval_one(each, name, args) for name, each in rows.items()}
        return self._prepare_eval_one(rows, "eval", args)

    def _prepare_eval_one(self, rows: Any, name: str, args: KTOConfig) -> Any:
        if isinstance(rows, PairableStream):
            return rows
        prepared: Prepared = self._prepare_rows(rows, name, args.per_device_eval_batch_size)
        return prepared.rows
