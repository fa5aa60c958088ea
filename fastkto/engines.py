"""Engines: which are refused, and what runs before and beside those that keep a part of each weight on each rank.

FSDP and DeepSpeed's ZeRO-3 gather weights in collectives of every forward, so all ranks have to run as many forwards
as any of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fastkto.errors import InputError


def refuse_data_parallel(args: Any) -> None:
    """The Trainer puts a model on several GPUs of one process into `nn.DataParallel`, which would cut batches apart."""
    if args.n_gpu > 1:
        fix = "Start with `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES to one."
        raise InputError("GPUs visible to one process", args.n_gpu, "1: nn.DataParallel is not supported", fix)


def shards(accelerator: Any) -> bool:
    """Whether the engine will keep only a part of each weight on a rank."""
    if accelerator.distributed_type == "DEEPSPEED":
        return bool(accelerator.state.deepspeed_plugin.zero_stage == 3)
    return bool(accelerator.distributed_type == "FSDP")


def partitioned(model: nn.Module) -> bool:
    """Whether ZeRO-3 has taken this model's weights apart already, as `from_pretrained` under it does."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def absent(model: nn.Module) -> bool:
    """Whether weights are on no device, and cannot be gathered either: another rank's, or of no checkpoint."""
    return left_to_first_rank() or any(p.is_meta or not (p.numel() or hasattr(p, "ds_id")) for p in model.parameters())


def left_to_first_rank() -> bool:
    """Whether FSDP takes this rank's weights from the first one, and `from_pretrained` put none here."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from transformers.integrations.fsdp import is_fsdp_enabled
    from transformers.modeling_utils import is_local_dist_rank_0

    return bool(is_fsdp_enabled() and not is_local_dist_rank_0())


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of a weight, of which ZeRO-3 may have left nothing here."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


@contextmanager
def whole(parameter: torch.Tensor) -> Iterator[None]:
    """Inside the block a weight that ZeRO-3 took apart is there. A collective: every rank calls it, in one order."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        yield


def part_of(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a whole value that can stand for the parameter, cut as that is. A collective."""
    if hasattr(parameter, "ds_id"):
        import deepspeed

        own = parameter.ds_tensor.clone()
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)
        part: torch.Tensor = parameter.ds_tensor.clone()
        parameter.ds_tensor.copy_(own)
        return part
    if isinstance(parameter, DTensor):
        given = torch.empty_like(value, device="cpu") if value.is_meta else value
        given = given.to(parameter.device, parameter.dtype)
        return distribute_tensor(given, parameter.device_mesh, parameter.placements).to_local()
    return value.to(parameter.device, parameter.dtype)


@torch.no_grad()
def exchanged(parameter: Any, part: torch.Tensor) -> torch.Tensor:
    """Put a part (`part_of`) in the parameter's place; what stood there."""
    if not hasattr(parameter, "ds_id") and not isinstance(parameter, DTensor):
        before: torch.Tensor = parameter.data
        parameter.data = part
        return before
    own = parameter.ds_tensor if hasattr(parameter, "ds_id") else parameter.to_local()  # engines hold on to these
    before = own.clone()
    own.copy_(part)
    return before


@contextmanager
def running(model: nn.Module, accelerator: Any) -> Iterator[None]:
    """Inside the block a model that training has not wrapped yet can be run without gradients.

    On the device where training will put it; taken apart by ZeRO-3, by hooks that gather and free each layer.
    """
    if partitioned(model):
        engine = _zero3(model, accelerator)
        try:
            yield
        finally:
            _take_off(engine)
        return
    home = next(model.parameters()).device
    moves = accelerator.distributed_type in ("DEEPSPEED", "FSDP") and home not in (
        accelerator.device,
        torch.device("meta"),
    )
    if moves:
        model.to(accelerator.device)
    try:
        yield
    finally:
        if moves:
            model.to(home)


def prepare_frozen(model: Any, accelerator: Any) -> Any:
    """A model that is run and not trained, under the engine of the one that is: where that is sharded, so is this."""
    if accelerator.distributed_type == "DEEPSPEED":
        plugin = accelerator.state.deepspeed_plugin
        if plugin.zero_stage == 3:
            return _zero3(model, accelerator)
        model = model.to(plugin.hf_ds_config.dtype())  # the engine casts the policy's weights so
    elif accelerator.distributed_type == "FSDP" and accelerator.is_fsdp2:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        plugin = accelerator.state.fsdp_plugin
        wrapping = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap  # settled by the first model for all
        try:
            model = fsdp2_prepare_model(accelerator, model)
            model.set_reshard_after_forward(True)  # of its last layers too, which no backward will free
            return model
        finally:
            plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = wrapping
    placed = True if accelerator.distributed_type == "FSDP" else None  # which its Accelerator leaves to the wrapper
    return accelerator.prepare_model(model, device_placement=placed, evaluation_mode=True)


def _zero3(model: nn.Module, accelerator: Any) -> Any:
    import deepspeed

    given = accelerator.state.deepspeed_plugin.hf_ds_config.config
    zero = {k: v for k, v in given["zero_optimization"].items() if v != "auto" and k != "offload_optimizer"}
    precision = {k: given[k] for k in ("bf16", "fp16") if k in given}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, **precision}
    return deepspeed.initialize(model=model, config=config)[0]


def _take_off(engine: Any) -> None:
    """Undo what an engine did to its model, the weights taken apart as before."""
    engine.optimizer.partition_all_parameters()
    engine.destroy()
    engine.module_forward_pre_hook.remove()
    engine.module_forward_post_hook.remove()
    for module in engine.module.modules():  # closures on this engine, which the next one would keep
        for name in ("pre_bwd_fn", "post_bwd_fn"):
            vars(module).pop(name, None)
