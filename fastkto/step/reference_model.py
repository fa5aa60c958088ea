"""The model that is the reference: a frozen copy, or the policy as it was at the start; and its fingerprint."""

import contextlib
import copy
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from fastkto.engines import exchanged, part_of, whole
from fastkto.errors import InputError
from fastkto.trunk.modules import content, is_peft_model, unwrap_peft

WRAPPERS = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_orig_mod.")
NOT_COMPUTED_WITH = ("_name_or_path", "transformers_version", "use_cache")


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The reference of full fine-tuning: the policy as it is now, without gradients."""
    reference = copy.deepcopy(model)
    hooks = [(module, module._hf_hook) for module in reference.modules() if hasattr(module, "_hf_hook")]
    for module, hook in hooks:  # accelerate's, whose closures still call the policy's layers
        from accelerate.hooks import add_hook_to_module, remove_hook_from_module

        remove_hook_from_module(module)
        add_hook_to_module(module, hook)
    return reference.requires_grad_(False).eval()


def check_separate(reference: Any, model: Any) -> None:
    """Raise `InputError` where a reference shares memory with a weight that is trained."""
    held = [(*_bytes_of(p), name, 0) for name, p in reference.named_parameters() if p.numel() and not p.is_meta]
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad and p.numel() and not p.is_meta]
    furthest: list[tuple[int, str]] = [(0, ""), (0, "")]  # of the reference, of what is trained
    for start, end, name, kind in sorted([*held, *((*_bytes_of(p), name, 1) for name, p in trained)]):
        if start < furthest[1 - kind][0]:
            own, policys = (furthest[0][1], name) if kind else (name, furthest[1][1])
            fix = "Pass a copy (copy.deepcopy), or leave ref_model out: the reference is then a frozen copy."
            expected = f"weights of its own, but its {own} is in the memory of the policy's {policys}"
            raise InputError("ref_model", type(reference).__name__, expected, fix)
        furthest[kind] = max(furthest[kind], (end, name))


def _bytes_of(weight: torch.Tensor) -> tuple[int, int]:
    """The first byte of a weight in memory, and the one behind its last."""
    last = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
    return weight.data_ptr(), weight.data_ptr() + (last + 1) * weight.element_size()


class StartingWeights:
    """The reference of a PeftModel: trained weights as they were at the start, in the place of what they are now.

    `trained`: the weights that would make another model of it. `adapter_off`: besides, no adapter is active, so that
    only weights of the base model are among them (TRL's rule for a new adapter).
    """

    file = "reference.safetensors"

    def __init__(self, model: Any, trained: Iterable[str], *, adapter_off: bool) -> None:
        self.adapter_off, names = adapter_off, set(trained)
        self._whole: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            if name in names:
                with whole(parameter):
                    self._whole[name] = parameter.detach().clone()
        self._parts: dict[str, torch.Tensor] = {}
        self._kinds: dict[str, type] = {}

    @contextlib.contextmanager
    def in_place(self, model: Any) -> Iterator[None]:
        """Inside the block the model computes what it did at the start."""
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        off: Any = model.disable_adapter() if self.adapter_off else contextlib.nullcontext()
        parameters = self._parameters(model)
        kinds = {name: type(parameter) for name, parameter in parameters.items()}
        if kinds != self._kinds:  # an engine has taken the weights apart since, on every rank
            self._parts, self._kinds = {}, kinds
        for name, parameter in parameters.items():
            if name not in self._parts:
                self._parts[name] = part_of(parameter, self._whole[name])
        exchanged_ones: list[str] = []
        torch.clear_autocast_cache()  # which would go on with what it has cast
        try:
            for name, parameter in parameters.items():
                self._parts[name] = exchanged(parameter, self._parts[name])
                exchanged_ones.append(name)
            with contextlib.ExitStack() as stack:
                with warnings.catch_warnings(action="ignore"):  # peft's, of trained biases: they are put back
                    stack.enter_context(off)
                yield
        finally:
            torch.clear_autocast_cache()
            for name in exchanged_ones:
                self._parts[name] = exchanged(parameters[name], self._parts[name])
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def _parameters(self, model: Any) -> dict[str, Any]:
        """Those that stand at the names of the start, whatever an engine has wrapped around their modules."""
        found = {}
        for name, parameter in model.named_parameters():
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            if name in self._whole:
                found[name] = parameter
        if missing := sorted(self._whole.keys() - found.keys()):
            fix = "Pass ref_model, or train without what renames the model's layers."
            raise InputError("model", f"no weight {missing[0]!r}", "the weights that it had at the start", fix)
        return found

    def content(self) -> str:
        """A fingerprint of them."""
        values = [(name, content(value)) for name, value in self._whole.items()]
        return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()

    def save(self, checkpoint: str | Path) -> None:
        """Put the weights into a checkpoint: a run that goes on from it has the reference of the one that began."""
        if self._whole:
            tensors = {name: value.cpu().contiguous() for name, value in self._whole.items()}
            save_file(tensors, Path(checkpoint) / self.file)

    def load(self, checkpoint: str | Path) -> None:
        """Take them from there, where they are."""
        path = Path(checkpoint) / self.file
        if not self._whole or not path.is_file():
            return
        self._whole, self._parts = load_file(path), {}


def fingerprint(model: Any, *, precision: str, adapter_off: bool = False) -> str:
    """Content of a model as a reference: configuration, names, shapes, dtypes and bytes of what it computes with.

    `adapter_off`: of a PeftModel only the base model counts.
    """
    digest = hashlib.blake2b(precision.encode(), digest_size=16)
    settings = unwrap_peft(model).config.to_dict()
    computing = {k: v for k, v in settings.items() if k not in NOT_COMPUTED_WITH and not k.endswith("_token_id")}
    digest.update(json.dumps(computing, sort_keys=True, default=str).encode())
    adapters: set[str] = set()
    if is_peft_model(model):
        adapters = set(model.peft_config) if adapter_off else set()
        if not adapter_off:
            configs = {name: config.to_dict() for name, config in model.peft_config.items()}
            digest.update(repr([sorted(map(repr, configs[name].items())) for name in sorted(configs)]).encode())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if adapters & set(name.split(".")):
            continue
        with whole(tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
