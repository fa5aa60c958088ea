"""One forward in which each layer's targets have a graph and its KL rows have none.

Every decoder layer is called once and runs in two parts: the target prefix, checkpointed where the user asked for it,
which stashes the layer's keys and values; then the KL tail on that stash, without a graph. Every token passes each
layer once and KL rows are never in the backward. With or without grad, in training or not, the products have the
same shapes: a policy equal to its reference scores bitwise the same.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from transformers.modeling_layers import GradientCheckpointingLayer

from fastkto.batch.layout import Layout, Part, Stash
from fastkto.trunk import heap
from fastkto.trunk.attention import CannotPack, packed_attention


def packed_forward(layout: Layout, base: Any, *args: Any, **kwargs: Any) -> Any:
    """`base(*args, **kwargs)` on a packed sequence."""
    config = base.config.get_text_config()
    with packed_attention(config), split_layers(base, config, layout):
        outputs = base(*args, use_cache=False, **kwargs)
    if getattr(outputs, "router_logits", None) is not None:
        outputs.router_logits = _of_targets(outputs.router_logits, layout)
    return outputs


@contextmanager
def split_layers(model: nn.Module, config: Any, layout: Layout) -> Iterator[None]:
    """Inside the block each layer of `model` runs as two parts."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    inner = {id(m) for layer in layers for m in layer.modules() if m is not layer}
    layers = [layer for layer in layers if id(layer) not in inner]
    if not layers:
        raise CannotPack(f"{type(model).__name__} has no layers that transformers can checkpoint")
    seam = _Seam()
    wrappers: list[Any] = [m for m in model.modules() if isinstance(m, CheckpointWrapper)]  # of FSDP's configuration
    around = {id(wrapper._checkpoint_wrapped_module): wrapper for wrapper in wrappers}
    with ExitStack() as stack:
        for layer in layers:
            stock = layer._gradient_checkpointing_func if layer.gradient_checkpointing and layer.training else None
            if wrapper := around.get(id(layer)):
                stock = wrapper.checkpoint_fn
                stack.enter_context(_with_attribute(wrapper, "forward", layer.__call__))  # `split` does it
            split = partial(_run_split, layer, layer.forward, stock, config, layout, seam)
            stack.enter_context(_with_attribute(layer, "forward", split))
            stack.enter_context(_with_attribute(layer, "gradient_checkpointing", False))  # `split` does it
        yield


@dataclass
class _Seam:
    """A layer's output and the targets in it. The next layer takes these, so no graph keeps the KL rows in memory."""

    joined: torch.Tensor | None = None
    targets: torch.Tensor | None = None


def _run_split(
    layer: Any,
    forward: Callable[..., Any],
    stock: Callable[..., Any] | None,
    config: Any,
    layout: Layout,
    seam: _Seam,
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`forward` of one layer on both parts; `stock` is the checkpointing function where the layer is checkpointed."""
    targets, tokens = layout.target_tokens, layout.target_tokens + layout.kl_tokens
    stash = Stash(open=layout.kl_tokens > 0)
    run = partial(_run_part, layer, forward, config)

    def part(tail: bool) -> tuple[list[Any], dict[str, Any]]:
        def cut(x: Any) -> Any:
            if not tail and x is seam.joined and x is not None and not x._backward_hooks:  # sharding's hooks must fire
                return seam.targets
            return _part_of(x, tokens, targets if tail else 0, tokens if tail else targets)

        named = {name: cut(x) for name, x in kwargs.items()}
        return [cut(x) for x in args], named | {"packed": Part(layout, tail, stash)}

    positional, named = part(tail=False)
    if seam.joined is None and torch.is_grad_enabled():  # after the last of the backward, before the embedding's
        for x in positional:
            if _large_on_cpu(x) and x.requires_grad:
                x.register_hook(lambda _: heap.give_back())
    if stock is not None and torch.is_grad_enabled():
        first = _without_reentry(stock)(partial(run, **named), *positional)
    else:
        first = run(*positional, **named)
    if not layout.kl_tokens:
        return first
    stash.open = False  # the recompute in the backward has no KL rows to serve
    with torch.no_grad():
        positional, named = part(tail=True)
        second = run(*positional, **named)
    if stash.kept:
        raise CannotPack(f"{type(layer).__name__} attends more often to targets than to KL rows")
    return _join(first, second, seam)


def _without_reentry(stock: Callable[..., Any]) -> Callable[..., Any]:
    """The checkpointing function that transformers set up, offloading too, with the graph that split parts need."""
    if isinstance(stock, partial):
        return partial(stock.func, *stock.args, **stock.keywords | {"use_reentrant": False})
    return stock


def _run_part(layer: nn.Module, forward: Callable[..., Any], config: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Also what the backward runs again: outside of the model's forward, and not to be checkpointed within itself."""
    with ExitStack() as stack:
        stack.enter_context(packed_attention(config))
        for module in layer.modules():
            if isinstance(module, GradientCheckpointingLayer):
                stack.enter_context(_with_attribute(module, "gradient_checkpointing", False))
        if torch.is_grad_enabled() and any(_large_on_cpu(x) for x in args):
            heap.give_back()
        return forward(*args, **kwargs)


def _large_on_cpu(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_cpu and value.nbytes >= heap.LARGE


@contextmanager
def _with_attribute(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    own = vars(module)
    before = {name: own[name]} if name in own else {}
    setattr(module, name, value)
    try:
        yield
    finally:
        delattr(module, name)
        own.update(before)


def _part_of(value: Any, tokens: int, start: int, end: int) -> Any:
    """The part [start, end) of what runs along the sequence; anything else as it is."""
    if isinstance(value, tuple | list):
        return type(value)(_part_of(x, tokens, start, end) for x in value)
    if not isinstance(value, torch.Tensor) or tokens not in value.shape:
        return value
    if value.ndim >= 2 and value.shape[1] == tokens:
        return value[:, start:end]
    if value.ndim == 1:
        return value[start:end]
    raise CannotPack(f"a layer takes a tensor of shape {tuple(value.shape)}, which runs along the sequence elsewhere")


def _join(first: Any, second: Any, seam: _Seam) -> Any:
    if isinstance(first, torch.Tensor):
        seam.targets, seam.joined = first, torch.cat([first, second], dim=1)
        return seam.joined
    if isinstance(first, tuple) and all(x is None for x in first[1:]):
        return _join(first[0], second[0], seam), *first[1:]
    raise CannotPack(f"a layer returns {type(first).__name__} with more than hidden states")


def _of_targets(logits: Sequence[torch.Tensor], layout: Layout) -> tuple[torch.Tensor, ...]:
    """The auxiliary loss counts target tokens; split layers record targets, tail, targets..."""
    logits = tuple(logits)[:: 2 if layout.kl_tokens else 1]
    for x in logits:
        if x.shape[0] != layout.target_tokens:
            raise CannotPack(f"a router's logits are of shape {tuple(x.shape)}, not one row a token")
    return logits
