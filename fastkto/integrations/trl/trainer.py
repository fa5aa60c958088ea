"""TRL's `KTOTrainer`, unmodified, with fastkto's packed micro-step and fused head in it.

`from fastkto.integrations.trl import KTOTrainer` in place of `from trl import KTOTrainer`; everything else stays.
"""

import functools
import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import torch

from fastkto.config import KTOConfig
from fastkto.engines import refuse_data_parallel
from fastkto.errors import InputError
from fastkto.integrations.seams import require_seams
from fastkto.integrations.trl.rows import TRLCollator
from fastkto.losses.kto import LossSettings
from fastkto.step import Reference
from fastkto.step.metrics import Sums, figures, step_sums
from fastkto.step.micro_step import ReferenceLogps, kto_step, row_logps
from fastkto.training.batching import choose_collator
from fastkto.trunk.modules import find_head, is_peft_model, unwrap_peft
from fastkto.trunk.run import Batch, ModelRun
from fastkto.trunk.scorer import teach_scorer

require_seams("trl")
_TRL: Any = importlib.import_module("trl").KTOTrainer  # not a plain import: TRL must not load before it is known


def _reference_of_adapter(model: Any) -> Any:
    """TRL's: the frozen copy that it made of an adapter passed in, else no adapter."""
    use_adapter = importlib.import_module("trl.trainer.utils").use_adapter
    return use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None)


class KTOTrainer(_TRL):
    """`trl.KTOTrainer` with the same arguments, loss, metrics, pairs and checkpoints, computed by fastkto.

    Targets and KL completions share one forward, packed where the model proves to allow it, and no logits are built.
    TRL's log lines gain `kl/raw`, `kl/stderr`, `rewards/accuracies` and `saturated`.

    Raises:
        ValueError: a `data_collator` (fastkto's own takes its place), fastkto's `KTOConfig`, rows with images, several
            GPUs in one process, a head or another TRL method that this was not written for.
    """

    data_collator: Any
    _model_run: ModelRun | None = None

    @functools.wraps(_TRL.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require_seams("trl")  # which may have been patched since the import
        given = inspect.signature(_TRL.__init__).bind(self, *args, **kwargs).arguments
        if given.get("data_collator") is not None:
            fix = "Leave it out, or use trl.KTOTrainer."
            raise InputError("data_collator", given["data_collator"], "None: batches are packed here", fix)
        if isinstance(given.get("args"), KTOConfig):
            fix = "Import KTOConfig from trl, or KTOTrainer from fastkto."
            raise InputError("args", "fastkto.KTOConfig", "trl.KTOConfig: this trainer is TRL's", fix)
        self._steps: dict[str, list[torch.Tensor]] = {"train": [], "eval": []}
        super().__init__(*args, **kwargs)
        self._set_up()

    def _set_up(self) -> None:
        """Teach the models to hand over hidden states, and choose packed or padded batches by trying."""
        if self._model_run is not None:
            return
        refuse_data_parallel(self.args)  # not every TRL does
        if self._is_vision_dataset:
            raise InputError("train_dataset", "rows with images", "rows of text", "Use trl.KTOTrainer.")
        if getattr(self, "use_liger_kernel", False):  # up to TRL 1.14, where it replaces the head and not only layers
            raise InputError("use_liger_kernel", True, "False", "Leave it out: the head is fused here already.")
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # which the reference is by now
        for model in (self.model, self.ref_model):
            if model is not None:
                teach_scorer(self.accelerator.unwrap_model(model), check=model is self.model or not sharded)
        plain = find_head(unwrap_peft(self.model)).plain
        self._model_run = ModelRun(self.model, plain_head=plain, router_logits=self.aux_loss_enabled)
        names = ("loss_type", "max_length", "pad_to_multiple_of", "bf16", "fp16", "torch_compile")
        sizes = ("per_device_train_batch_size", "per_device_eval_batch_size")
        given = {name: getattr(self.args, name) for name in (*names, *sizes)}
        options: Any = SimpleNamespace(packing=None, max_tokens_per_forward=None, **given)
        own = self.data_collator
        collator = choose_collator(
            self._model_run, self.train_dataset, options, pad_token_id=own.pad_token_id, evals=self.eval_dataset
        )
        self.data_collator = TRLCollator(collator, own)
        # it would cut and join batches by rows, which ours do not survive
        self.accelerator.dataloader_config.dispatch_batches = False

    def _runs(self, model: Any) -> ModelRun:
        assert self._model_run is not None
        return self._model_run._replace(model=model)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        self._set_up()  # TRL's constructor comes here before it ends
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def compute_ref_log_probs(self, model: Any, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probs under the reference, (B,) of the rows and of their mismatched pairs; `model` is not looked at."""
        return self._reference_logps(inputs)[:2]

    def _reference_logps(self, inputs: Batch) -> ReferenceLogps:
        own = _reference_of_adapter if is_peft_model(self.accelerator.unwrap_model(self.model)) else None
        return Reference(self._runs(self.model), self.ref_model, None, self.accelerator, own)(inputs)

    def _compute_kl_logps(self, model: Any, batch: Batch) -> torch.Tensor | None:
        return row_logps(self._runs(model), batch)[1]

    def _compute_loss(self, model: Any, inputs: Batch, return_outputs: bool) -> Any:
        if self.precompute_ref_logps:
            reference = ReferenceLogps(inputs["ref_logps"], inputs.get("ref_KL_logps"))
        else:
            reference = self._reference_logps(inputs)
        # autocast: a model that has not been through `train` is not wrapped in it, the reference always is
        with self.accelerator.autocast():
            out, aux_loss = kto_step(
                self._runs(model),
                inputs,
                reference,
                LossSettings(self.beta, self.desirable_weight, self.undesirable_weight, self.loss_type),
                num_rows=None,
                reduce=self._sum_over_ranks if self.accelerator.num_processes > 1 else None,
            )
        self._steps["train" if self.model.training else "eval"].append(step_sums(out, inputs, aux_loss))
        loss = out.loss if aux_loss is None else out.loss + self.router_aux_loss_coef * aux_loss
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log line; the figures of the micro-steps since the last one are read from the device here."""
        mode = "train" if self.model.training else "eval"
        steps, self._steps[mode] = self._steps[mode], []
        if steps:
            metrics = self._metrics[mode]
            for sums in self._sum_over_ranks(torch.stack(steps)).cpu():
                of_step = figures(Sums(*sums))
                tokens = int(of_step.pop("num_tokens"))
                if mode == "train":
                    self._total_train_tokens += tokens // getattr(self, "_tp_size", 1)  # since TRL 1.13
                for name, value in of_step.items():
                    metrics[name].append(value)
            metrics["num_tokens"] = [self._total_train_tokens]
        super().log(logs, start_time)

    def _sum_over_ranks(self, x: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(x, reduction="sum")
