"""The model: its head found, and its forward taught to hand hidden states to a scorer instead of making logits."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from fastkto.engines import absent
from fastkto.errors import InputError


class Head(NamedTuple):
    """The LM head of a model as the scorer needs it."""

    module: Any
    softcap: float | None
    scale: float

    @property
    def plain(self) -> bool:
        """Whether `weight` and `bias` are all there is: no adapter, no quantisation (sharding swaps the class)."""
        return isinstance(self.module, nn.Linear) and type(self.module).forward is nn.Linear.forward


Scorer = Callable[[torch.Tensor, Head, torch.Tensor | None], Any]
"""(hidden states (B, L, D), head, auxiliary loss or None) -> what the model's forward shall return."""


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
    softcap = getattr(config, "final_logit_softcapping", None)
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale = getattr(config, name, None)
        if scale is not None:
            return Head(module, softcap, float(scale))
    divisor = getattr(config, "logits_scaling", None)
    if divisor is None:
        return Head(module, softcap, 1.0)
    return Head(module, softcap, float(divisor) if config.model_type == "hyperclovax" else 1.0 / float(divisor))


def padded_forward(base: Any, *args: Any, **kwargs: Any) -> Any:
    """The trunk on a padded batch: `base(input_ids, attention_mask)`."""
    return base(*args, use_cache=False, **kwargs)


def install_scorer(model: PreTrainedModel) -> None:
    """Let `model(..., scorer=f)` return `f(hidden_states, head, aux_loss)`; without `scorer` nothing changes.

    `trunk(base_model, **inputs)` runs the layers; the default takes a padded batch. Both run inside the model's own
    forward, so that autocast, DDP and sharded parameters see them.
    """
    if getattr(model.forward, "takes_scorer", False):
        return
    own: Any = model.forward
    method = getattr(own, "__self__", None) is model

    @functools.wraps(type(model).forward)
    def forward(
        self: Any, *args: Any, scorer: Scorer | None = None, trunk: Callable[..., Any] = padded_forward, **kwargs: Any
    ) -> Any:
        if scorer is None:
            return own.__func__(self, *args, **kwargs) if method else own(*args, **kwargs)
        outputs = trunk(self.base_model, *args, **kwargs)
        aux_loss = _aux_loss(self, outputs, kwargs.get("attention_mask"))
        return _score(scorer, outputs.last_hidden_state, find_head(self), aux_loss)

    forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    del forward.__wrapped__  # accelerate would take mixed precision off down to the innermost function, past this one
    forward.takes_scorer = True  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)  # type: ignore[method-assign]  # a method: a deep copy runs the copy


@torch.compiler.disable
def _score(scorer: Scorer, hidden: torch.Tensor, head: Head, aux_loss: torch.Tensor | None) -> Any:
    """The scorer as the head's own forward, so that the hooks of a sharded head gather its weight and free it again.

    Outside of compiled graphs: its tiles and host integers would be compiled anew for every batch.
    """
    if not head.plain:  # its scorer calls the module
        return scorer(hidden, head, aux_loss)
    own = vars(head.module)
    before = {name: value for name, value in own.items() if name == "forward"}

    def put_back() -> None:
        if own.get("forward") is once:
            del head.module.forward
            own.update(before)

    def once(hidden: torch.Tensor) -> Any:
        put_back()  # the scorer may run the stock forward
        return scorer(hidden, head, aux_loss)

    head.module.forward = once
    try:
        return head.module(hidden)
    finally:  # a hook that fails comes before `once`
        put_back()


def teach_scorer(model: nn.Module, *, check: bool = True) -> None:
    """Let `model(..., scorer=f)` run `f` in place of the head, checked to be right for this model's head.

    Before accelerate wraps the model's forward, not after. `check`: False where the model cannot be run yet.
    """
    base = unwrap_peft(model)
    install_scorer(base)
    if check:
        check_head(base)


def check_head(model: PreTrainedModel) -> None:
    """Raise `InputError` where the head as the scorer sees it is not what turns hidden states into the model's logits.

    A head that is more than its output embedding, or a scale of a name unknown here, would give wrong log-probs and
    no other sign. Compared on four tokens, unless the weights are `absent`.
    """
    if absent(model):
        return
    ids = torch.arange(4, device=model.device)[None]

    def logits(hidden: torch.Tensor, head: Head, _: torch.Tensor | None) -> torch.Tensor:
        z = head.module(hidden).float() * head.scale
        return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)

    with torch.no_grad(), evaluating(model):
        own, ours = model(input_ids=ids).logits.float(), model(input_ids=ids, scorer=logits)
    if not (own - ours).abs().max() <= 0.02 * own.abs().max():  # a few bf16 roundings; a scale misses by a factor
        expected = "logits that are softcap * tanh(scale * output_embeddings(hidden_states) / softcap)"
        raise InputError("model", type(model).__name__, expected, "This model's head is not supported.")


def _aux_loss(model: PreTrainedModel, outputs: Any, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Load-balancing loss of a mixture of experts, where router logits were asked for."""
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
