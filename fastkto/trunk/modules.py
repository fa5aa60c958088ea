"""What there is to know of a model, and small changes to it: its head, adapter, dropout, mode, auxiliary loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from fastkto.errors import InputError

CHUNK = 2**20


class Head(NamedTuple):
    """The LM head of a model as the scorer needs it."""

    module: Any
    softcap: float | None
    scale: float

    @property
    def plain(self) -> bool:
        """Whether `weight` and `bias` are all there is: no adapter, no quantisation (sharding swaps the class)."""
        return isinstance(self.module, nn.Linear) and type(self.module).forward is nn.Linear.forward


SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def find_head(model: PreTrainedModel) -> Head:
    """The output embedding with its softcap and scale, under the several names that configs give them."""
    module = model.get_output_embeddings()
    if module is None or model.config.is_encoder_decoder:
        raise InputError(
            "model",
            type(model).__name__,
            "a causal language model with an LM head",
            "Load it with AutoModelForCausalLM.",
        )
    config = model.config.get_text_config()
    softcaps = [getattr(config, name, None) for name in SOFTCAPS]
    softcap = next((float(cap) for cap in softcaps if cap is not None), None)
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale = getattr(config, name, None)
        if scale is not None:
            return Head(module, softcap, float(scale))
    divisor = getattr(config, "logits_scaling", None)
    if divisor is None:
        return Head(module, softcap, 1.0)
    return Head(module, softcap, float(divisor) if config.model_type == "hyperclovax" else 1.0 / float(divisor))


def find_base(model: PreTrainedModel) -> Any:
    """The model below its head. Llama 4 names another attribute as its base than it has."""
    if model.base_model is not model:
        return model.base_model
    inner = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if len(inner) == 1:
        return inner[0]
    fix = "This model is not supported."
    raise InputError("model", type(model).__name__, "a head on one model that transformers can name", fix)


def load_balancing_loss(
    model: PreTrainedModel, outputs: Any, attention_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """Auxiliary loss of a mixture of experts, where router logits were asked for."""
    if getattr(outputs, "router_logits", None) is None:
        return None
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = model.config.get_text_config()
    experts = getattr(model, "num_experts", None) or getattr(config, "num_local_experts", None) or config.num_experts
    aux_loss: Any = load_balancing_loss_func(outputs.router_logits, experts, config.num_experts_per_tok, attention_mask)
    return aux_loss


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0: those of modules and those that attention hands to a function."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def is_peft_model(model: nn.Module) -> bool:
    """Whether the model is wrapped by peft, without importing peft for one that is not."""
    return any(cls.__module__.startswith("peft.") for cls in type(model).__mro__)


def unwrap_peft(model: Any) -> PreTrainedModel:
    """The transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if is_peft_model(model) else model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode (no dropout), back in its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def first_non_finite(model: nn.Module) -> str | None:
    """Name of the first parameter that holds a NaN or inf, or None; looks at what of the weights is on this rank."""
    for name, parameter in model.named_parameters():
        parameter = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3's part of it
        if parameter.is_meta:
            continue
        if parameter.is_floating_point() and not torch.isfinite(parameter.sum()) and not parameter.isfinite().all():
            return name
    return None


def content(parameter: Any) -> int:
    """A number that another content, or the same in other places, would hardly have; the same on every machine."""
    held = getattr(parameter, "ds_tensor", parameter).detach()
    if held.is_meta:
        return 0
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[held.element_size()]
    places = torch.arange(1, 1 + min(held.numel(), CHUNK), device=held.device)
    total = 0
    for part in held.reshape(-1).view(bits).split(CHUNK):
        total = (total * 31 + int((part.to(torch.int64) * places[: len(part)]).sum())) % 2**61
    return total


def aux_loss_coef(model: PreTrainedModel, asked: float | None) -> float:
    """Weight of a mixture of experts' auxiliary loss: the one asked for, else its config's; 0 for other models."""
    config = model.config.get_text_config()
    mixture = hasattr(config, "output_router_logits")
    if asked is not None and asked > 0 and not mixture:
        fix = "Leave it out."
        expected = f"None: {type(model).__name__} returns no router logits"
        raise InputError("router_aux_loss_coef", asked, expected, fix)
    if not mixture:
        return 0.0
    declared = float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0)
    return declared if asked is None else asked
