"""The model that is the reference: a frozen copy, or the policy with its adapter switched off; and its fingerprint."""

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from fastkto.engines import whole
from fastkto.errors import InputError
from fastkto.trunk.modules import is_peft_model, unwrap_peft

logger = logging.get_logger(__name__)

REFERENCE_ADAPTER = "ref"
NOT_COMPUTED_WITH = ("_name_or_path", "transformers_version", "use_cache")


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The reference of full fine-tuning: the policy as it is now, without gradients."""
    reference = copy.deepcopy(model)
    return reference.requires_grad_(False).eval()


def add_reference_adapter(model: Any) -> None:
    """The reference of a PeftModel passed in: a frozen copy of its active adapter (TRL's rule)."""
    name = model.active_adapter
    if getattr(model.peft_config[name], "bias", "none") != "none":
        expected = 'bias="none": peft holds one adapter with biases, and the reference is a frozen copy'
        fix = "Pass ref_model, or give the base model and a peft_config."
        raise InputError("model", f"an adapter with bias={model.peft_config[name].bias!r}", expected, fix)
    if name == REFERENCE_ADAPTER:
        fix = f"Rename it: {REFERENCE_ADAPTER!r} is the name of its frozen copy."
        raise InputError("model", f"an adapter named {name!r}", "another name", fix)
    if REFERENCE_ADAPTER in model.peft_config:
        logger.warning(f"The adapter {REFERENCE_ADAPTER!r} is replaced by a frozen copy of {name!r} as it is now.")
        model.delete_adapter(REFERENCE_ADAPTER)
    model.add_adapter(REFERENCE_ADAPTER, model.peft_config[name])
    parameters = dict(model.named_parameters())
    for key, parameter in parameters.items():
        parts = key.split(".")  # the adapter's name may come last: `lora_embedding_A.default`
        if REFERENCE_ADAPTER in parts:
            source = ".".join(name if part == REFERENCE_ADAPTER else part for part in parts)
            parameter.data.copy_(parameters[source].data)
            parameter.requires_grad_(False)
    model.set_adapter(name)


@contextlib.contextmanager
def reference_adapter(model: Any) -> Iterator[None]:
    """The PeftModel as its own reference: with its frozen copy active, or with no adapter at all."""
    if REFERENCE_ADAPTER not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    active = model.active_adapter
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    model.set_adapter(REFERENCE_ADAPTER)
    try:
        yield
    finally:
        model.set_adapter(active)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)


def fingerprint(model: Any, *, precision: str) -> str:
    """Content of a model as a reference: configuration, names, shapes, dtypes and bytes of what it computes with.

    Of a PeftModel the adapter in training is left out; its frozen copy counts where there is one.
    """
    digest = hashlib.blake2b(precision.encode(), digest_size=16)
    settings = unwrap_peft(model).config.to_dict()
    computing = {k: v for k, v in settings.items() if k not in NOT_COMPUTED_WITH and not k.endswith("_token_id")}
    digest.update(json.dumps(computing, sort_keys=True, default=str).encode())
    skipped = None
    if is_peft_model(model):
        skipped = f".{model.active_adapter}"
        if REFERENCE_ADAPTER in model.peft_config:
            digest.update(repr(sorted(map(repr, model.peft_config[REFERENCE_ADAPTER].to_dict().items()))).encode())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if skipped is not None and f"{skipped}." in f"{name}.":
            continue
        with whole(tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
