"""`run.json`: what a run was made of, in its folder and each checkpoint; what differs on resume or between ranks."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate.utils import gather_object
from transformers.utils import logging

from fastkto.config import KTOConfig
from fastkto.engines import left_to_first_rank
from fastkto.errors import InputError
from fastkto.step.reference_model import StartingWeights
from fastkto.trunk.modules import content, is_peft_model

logger = logging.get_logger(__name__)

FILE = "run.json"
PACKAGES = ("fastkto", "torch", "transformers", "accelerate", "datasets", "peft", "triton")
DECIDES = (
    *("loss_type", "beta", "desirable_weight", "undesirable_weight", "router_aux_loss_coef", "max_length"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "max_grad_norm"),
    *("optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy", "seed", "data_seed"),
    *("bf16", "fp16", "disable_dropout", "neftune_noise_alpha", "on_nonfinite", "dataloader_drop_last"),
    *("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps", "precompute_ref_log_probs"),
)
"""Settings whose change makes a curve that no one run has."""
OF_NO_INTEREST = ("output_dir", "resume_from_checkpoint", "resume_changed", "run_name", "hub_token")

OF_EVERY_RANK = (
    *("max_steps", "num_train_epochs", "logging_strategy", "logging_steps", "eval_strategy", "eval_steps"),
    *("save_strategy", "save_steps", "load_best_model_at_end", "max_tokens_per_forward", "packing"),
)
"""Settings that leave the loss alone, but with which ranks would wait for each other."""
SECRET = re.compile(
    r"(?i:(^|[_-])(token|key|auth)|passw(or)?d|secret|credentials?|bearer|authorization)$|[a-z](Key|Token)$"
)
OF_A_TOKENIZER = re.compile(r"(pad|eos|bos|unk|sep|cls|mask|image)_token$")
UNSAID = ("accelerator_config", "activation_checkpointing", "dataloader_pin_memory", "disable_tqdm", "report_to")
"""Settings that have been filled in."""


class RunRecord:
    """The settings, and fingerprints of data, base model, adapter and reference; a part of every checkpoint.

    `changed`: the names that `load` found different and let pass.
    """

    def __init__(
        self,
        args: KTOConfig,
        rows: Any,
        model: Any,
        reference: Any | None,
        start: StartingWeights | None,
        *,
        plain: bool = False,
    ) -> None:
        self.args = args
        self.changed: set[str] = set()
        adapters = model.peft_config if is_peft_model(model) else {}
        self.about: dict[str, Any] = without_secrets(
            {
                "settings": {k: v for k, v in args.to_dict().items() if k not in OF_NO_INTEREST},
                "processes": args.world_size,
                "data": content_of_rows(rows),
                "base": content_of_model(model, skip_trained=bool(adapters)),
                "adapter": {name: _settled(config) for name, config in adapters.items()},
                "reference": _content_of_reference(reference, start, cached=args.precompute_ref_log_probs),
                "versions": {"python": platform.python_version(), **_versions()},
                **({"plain": True} if plain else {}),  # text that went past the chat template
            }
        )

    def not_defaults(self) -> dict[str, Any]:
        """The settings whose values are not the defaults."""
        defaults = {
            field.name: field.default_factory() if callable(field.default_factory) else field.default
            for field in dataclasses.fields(self.args)
        }
        given = {k: v for k, v in self.about["settings"].items() if k not in UNSAID and v not in (None, [], {})}
        return {k: v for k, v in given.items() if v != _plain(defaults.get(k))}

    def agree(self, accelerator: Any) -> None:
        """Raise `InputError` on every rank where one was started with something else, and would hang or mix."""
        if accelerator.num_processes == 1:
            return
        own = {k: v for k, v in _flat(self.about).items() if _decides(k) or _name(k) in OF_EVERY_RANK}
        everyone = gather_object([{**own, "base": None, "reference": None}])  # which one rank may hold alone
        for name in everyone[0]:
            values = [about.get(name) for about in everyone]
            if any(value != values[0] for value in values):
                others = next(i for i, value in enumerate(values) if value != values[0])
                what = f"{values[0]!r} on rank 0 and {values[others]!r} on rank {others}"
                fix = "Start every process with the same command and the same files."
                raise InputError(_name(name), what, "one value on all ranks", fix)

    def save(self, checkpoint: str | Path) -> None:
        """Write it into a folder."""
        text = json.dumps(self.about, indent=1, sort_keys=True) + "\n"
        (Path(checkpoint) / FILE).write_text(text, encoding="utf-8")

    def load(self, checkpoint: str | Path) -> None:
        """Compare with what a checkpoint was made with: said by name, refused where the curve would be a mixture."""
        path = Path(checkpoint) / FILE
        self.changed = set()
        if not path.is_file():
            logger.warning(f"{checkpoint} does not say what it was made with, so nothing could be compared.")
            return
        try:
            then = _flat(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, AttributeError) as error:
            fix = "Resume from another checkpoint, or delete this file to resume without a comparison."
            raise InputError("resume_from_checkpoint", str(path), f"a JSON object, but {error}", fix) from error
        now = _flat(self.about)
        differ = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
        differ = [name for name in differ if name not in ("base", "reference") or now.get(name) is not None]
        refused = [name for name in differ if _decides(name)]
        said = {name: f"{_name(name)} was {_shown(then, name)}, is {_shown(now, name)}" for name in differ}
        if refused and self.args.resume_changed != "ok":
            named = "; ".join(said[name] for name in refused)
            fix = 'Set them back, start over, or go on with resume_changed="ok".'
            raise InputError("resume_from_checkpoint", str(checkpoint), f"the run that wrote it, but {named}", fix)
        self.changed = {_name(name).partition(".")[0] for name in differ}
        if said:
            logger.warning(f"Resumed, though not everything is as it was: {'; '.join(said.values())}.")


def _content_of_reference(reference: Any | None, start: StartingWeights | None, *, cached: bool) -> str | None:
    """Of an adapter's start only where log-probs are cached: else the checkpoint's takes its place."""
    if start is not None:
        return start.content() if cached else None
    return None if reference is None else content_of_model(reference)


def content_of_rows(rows: Any) -> str | None:
    """A fingerprint of tokenised rows in their order; None of a stream."""
    if not hasattr(rows, "__len__"):
        return None
    digest = hashlib.blake2b(digest_size=8)
    names = [name for name in ("prompt_ids", "completion_ids", "label", "weight") if name in rows.column_names]
    for table in rows.select_columns(names).with_format("arrow").iter(batch_size=10_000):
        for name in names:
            column = table[name].combine_chunks()
            if name.endswith("_ids"):
                digest.update(column.value_lengths().to_numpy(zero_copy_only=False).astype(numpy.int64).tobytes())
                column = column.flatten()
            digest.update(column.to_numpy(zero_copy_only=False).astype(numpy.float64).tobytes())
    return digest.hexdigest()


def content_of_model(model: Any, *, skip_trained: bool = False) -> str | None:
    """A fingerprint of weights and configuration; None where the weights are another rank's."""
    parameters = [x for x in model.named_parameters() if not (skip_trained and x[1].requires_grad)]
    if left_to_first_rank() or any(x.is_meta or hasattr(x, "ds_id") for _, x in parameters):
        return None
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in parameters:
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {content(parameter)}".encode())
    return digest.hexdigest()


def _decides(name: str) -> bool:
    head, _, rest = name.partition(".")
    if head == "settings":
        return rest.partition(".")[0] in DECIDES
    return head in ("data", "base", "adapter", "reference", "processes")


def _name(name: str) -> str:
    return name.removeprefix("settings.")


def _flat(about: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in about.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _shown(about: Mapping[str, Any], name: str) -> str:
    return "not there" if name not in about else repr(about[name])


def _settled(config: Any) -> dict[str, Any]:
    """An adapter's configuration without what peft fills in by itself or what does not compute."""
    values = config.to_dict()
    for name in ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"):
        values.pop(name, None)
    return {name: sorted(value, key=str) if isinstance(value, set) else value for name, value in values.items()}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "torch": torch.__version__}


def without_secrets(about: Any) -> Any:
    """As JSON holds it, without what a key says is a token or a password."""
    plain = _plain(about)
    if isinstance(plain, dict):
        return {k: without_secrets(v) for k, v in plain.items() if OF_A_TOKENIZER.match(k) or not SECRET.search(k)}
    return [without_secrets(x) for x in plain] if isinstance(plain, list) else plain


def _plain(about: Any) -> Any:
    return json.loads(json.dumps(about, default=lambda x: type(x).__name__, sort_keys=True))
