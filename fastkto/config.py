"""`KTOConfig`: TRL's fields, names and defaults on Hugging Face's `TrainingArguments`, and what fastkto adds."""

import json
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import logging

from fastkto.errors import InputError, keywords_of
from fastkto.losses.kto import LOSS_TYPES, check_rows_to_pair, uses_kl
from fastkto.ranges import check_ranges

logger = logging.get_logger(__name__)

WEIGHT_DTYPES = ("bfloat16", "float16", "float32")
ON_NONFINITE = ("stop", "skip")
PATHS = ("output_dir", "ref_cache_dir", "resume_from_checkpoint", "deepspeed", "fsdp_config", "accelerator_config")
RESUME_CHANGED = ("refuse", "ok")
SAMPLING_STRATEGIES = ("random", "sequential", "group_by_length", "stratified")


@dataclass
class KTOConfig(TrainingArguments):
    """Every field of TRL 1.16's `KTOConfig` under its name; a field not described below is a `TrainingArguments` one.

    Defaults that differ from TRL's: `train_sampling_strategy="random"` (pairs are made when the batch is formed, so
    any order is sound), `logging_nan_inf_filter=False` (a NaN shows) and `ddp_broadcast_buffers=False` (one collective
    less a forward). On a machine without bf16 hardware bf16 is off unless it is asked for, and a line says so.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]  # noqa: RUF012

    learning_rate: float = field(default=1e-6, metadata={"help": "Initial learning rate of AdamW."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many optimizer steps; below 1, a share."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN and inf losses in the log."})
    gradient_checkpointing: bool = field(
        default=True, metadata={"help": "Recompute activations in the backward: less memory, more time."}
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "bf16 autocast over fp32 weights; unset: on where the hardware has bf16."}
    )
    ddp_broadcast_buffers: bool | None = field(
        default=False,
        metadata={"help": "Broadcast buffers in every DDP forward; those of language models are constants."},
    )
    train_sampling_strategy: str = field(
        default="random",
        metadata={"help": "Order of the rows in an epoch.", "choices": list(SAMPLING_STRATEGIES)},
    )

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keywords for `from_pretrained`, when the model is given by its id."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run Python code that ships with a model."})
    router_aux_loss_coef: float | None = field(
        default=None, metadata={"help": "Weight of a mixture-of-experts model's auxiliary loss; unset: its config's."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "No dropout in the policy and the reference."})

    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise."})
    max_length: int | None = field(
        default=1024, metadata={"help": "Tokens of prompt and completion; the rest is cut from the right."}
    )
    pad_to_multiple_of: int | str | None = field(
        default="auto", metadata={"help": "Round padded lengths up to this; auto: no rounding."}
    )
    precompute_ref_log_probs: bool = field(
        default=False,
        metadata={"help": "Score with the reference once, before training, and keep the results on disk."},
    )
    precompute_ref_batch_size: int | None = field(
        default=None,
        metadata={"help": "Accepted for TRL's sake: the reference scores the training batches themselves."},
    )
    ref_cache_dir: str | None = field(
        default=None, metadata={"help": "Where the reference's log-probs are kept; unset: in the output directory."}
    )

    loss_type: str = field(default="kto", metadata={"help": "Type of loss.", "choices": list(LOSS_TYPES)})
    beta: float = field(
        default=0.1, metadata={"help": "Sensitivity to the log-ratio: higher stays nearer the reference."}
    )
    desirable_weight: float | str = field(
        default=1.0, metadata={"help": 'Weight of desirable rows; "auto" solves the paper\'s rule for the data.'}
    )
    undesirable_weight: float = field(default=1.0, metadata={"help": "Weight of undesirable rows."})
    packing: bool | None = field(
        default=None,
        metadata={
            "help": "Rows in one sequence without padding, each prompt once; unset: where the model proves to allow it."
        },
    )
    max_tokens_per_forward: int | None = field(
        default=None,
        metadata={"help": "Split a micro-batch into forwards of at most this many tokens that share one z0."},
    )
    on_nonfinite: str = field(
        default="stop",
        metadata={
            "help": "A NaN or inf in an optimizer step's loss, log-probs or gradients: end the run with the row ids, "
            "or leave the step out and count it.",
            "choices": list(ON_NONFINITE),
        },
    )
    resume_changed: str = field(
        default="refuse",
        metadata={
            "help": "A checkpoint of other data, weights, or settings that decide the loss: refuse, or go on (ok).",
            "choices": list(RESUME_CHANGED),
        },
    )
    head_backend: str = field(default="auto", metadata={"help": "Backend of the LM head; see `fastkto doctor`."})
    activation_offloading: bool = field(default=False, metadata={"help": "Keep activations in CPU memory."})
    sync_ref_model: bool = field(default=False, metadata={"help": "Move the reference towards the policy (TR-DPO)."})
    ref_model_mixup_alpha: float = field(
        default=0.6, metadata={"help": "Share of the policy in the reference after a synchronisation."}
    )
    ref_model_sync_steps: int = field(default=512, metadata={"help": "Optimizer steps between synchronisations."})

    def __post_init__(self) -> None:
        """Settle bf16, then check the values that Hugging Face does not know."""
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and _has_bf16()
            if not self.bf16 and not self.fp16:
                logger.warning_once("bf16 is off (no bf16 accelerator in use): computing in the weights' dtype.")
        for name in PATHS:
            if isinstance(path := getattr(self, name, None), str):
                setattr(self, name, os.path.expanduser(path))
        if isinstance(self.desirable_weight, str) and self.desirable_weight != "auto":
            self.desirable_weight = _number("desirable_weight", self.desirable_weight)
        if isinstance(self.pad_to_multiple_of, str):
            text = self.pad_to_multiple_of.lower()
            unset = text in ("auto", "none", "null")
            self.pad_to_multiple_of = None if unset else _number("pad_to_multiple_of", text)  # type: ignore[assignment]
        if self.output_dir and os.path.exists(self.output_dir) and not os.path.isdir(self.output_dir):
            raise InputError(
                "output_dir", self.output_dir, "a directory, or a path that is free", "Choose another path."
            )
        self._check()
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            new = old.replace("gradient", "activation")  # its name since transformers 5.2x
            if hasattr(self, new) and getattr(self, new) is None:
                setattr(self, new, getattr(self, old))
        with keywords_of("accelerator_config", self.accelerator_config):
            super().__post_init__()
        if self.use_liger_kernel:
            kernels: dict[str, Any] = dict(self.liger_kernel_config or {})  # type: ignore[arg-type]
            if kernels.get("fused_linear_cross_entropy"):
                fix = "Leave it out: the head is fused here already."
                raise InputError("liger_kernel_config", kernels, "no fused_linear_cross_entropy", fix)
            self.liger_kernel_config = {**kernels, "fused_linear_cross_entropy": False}

    def _check(self) -> None:
        for name, allowed in (
            ("loss_type", LOSS_TYPES),
            ("train_sampling_strategy", SAMPLING_STRATEGIES),
            ("on_nonfinite", ON_NONFINITE),
            ("resume_changed", RESUME_CHANGED),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(name, getattr(self, name), f"one of {allowed}", "Correct the name.")
        check_ranges(self)
        for name in self._VALID_DICT_FIELDS:
            if isinstance(text := getattr(self, name, None), str) and text.startswith("{"):
                _check_json(name, text)
        self._check_report_to()
        if uses_kl(self.loss_type):
            check_rows_to_pair("per_device_train_batch_size", self.per_device_train_batch_size)
        if self.ddp_broadcast_buffers and self.max_tokens_per_forward is not None:
            expected = "False with max_tokens_per_forward: ranks with other numbers of forwards would wait forever"
            raise InputError("ddp_broadcast_buffers", True, expected, "Leave it out.")
        if self.sync_ref_model and self.precompute_ref_log_probs:
            raise InputError(
                "sync_ref_model",
                True,
                "False with precompute_ref_log_probs=True: a reference that moves makes cached log-probs stale",
                "Set one of the two to False.",
            )

    def _check_report_to(self) -> None:
        from transformers.integrations import integration_utils as hosts

        for name in [self.report_to] if isinstance(self.report_to, str) else self.report_to or []:
            if name in ("all", "none", "azure_ml", "flyte", "kubeflow"):  # not in the list of what is installed
                continue
            if name not in hosts.INTEGRATION_TO_CALLBACK:
                expected = f"all, none, or some of {', '.join(hosts.INTEGRATION_TO_CALLBACK)}"
                raise InputError("report_to", name, expected, "Correct the name.")
            if name not in hosts.get_available_reporting_integrations():
                fix = f"Run `pip install {name.replace('_', '-')}`, or set report_to to none."
                raise InputError("report_to", name, "a package that is installed", fix)


def mixed_precision(args: TrainingArguments, device: torch.device) -> torch.autocast:
    """Autocast as the Trainer computes in it: `torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)`."""
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    return torch.autocast(device.type, dtype, enabled=bool(args.bf16 or args.fp16))


def _has_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return hasattr(torch, "xpu") and torch.xpu.is_available()


def _check_json(name: str, text: str) -> None:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(name, text, "a mapping as JSON", f"The parser says: {error}.") from error


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise InputError(name, text, "a number", "Correct the value.") from None
    return int(number) if number.is_integer() else number
