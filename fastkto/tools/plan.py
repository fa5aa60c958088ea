"""What a training step will need in memory, by part, before anything is loaded: the step runs on fake tensors."""

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import torch
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM, PreTrainedConfig

from fastkto.batch import PackingCollator, PaddingCollator
from fastkto.config import KTOConfig
from fastkto.errors import InputError
from fastkto.losses.kto import uses_kl
from fastkto.tools.fake_step import FakeStep
from fastkto.tools.footprint import GRADIENTS, OPTIMIZER, PARTS, REFERENCE, WEIGHTS, Footprint
from fastkto.training.loading import policy_and_reference
from fastkto.trunk import heap
from fastkto.trunk.attention import CannotPack

if TYPE_CHECKING:
    from peft import PeftConfig

HOLES_PER_WORK = 1.0
"""What glibc keeps beside a layer's temporaries, by the byte of them: on a CPU, where blocks of many sizes come and go.
Fitted to rows of 768 and 1536 tokens, which `benchmarks/plan.py` does not check."""
LONGEST, MOST_ROWS = 2**17, 2**7
"""Where the search for what fits ends."""
STATES = {
    "adamw_torch": (2, None),
    "adamw_torch_fused": (2, None),
    "adamw_8bit": (2, 1),
    "adamw_bnb_8bit": (2, 1),
    "paged_adamw_8bit": (2, 1),
    "lion_8bit": (1, 1),
    "lion_32bit": (1, 4),
    "sgd": (0, None),
}
"""What an optimizer keeps for each weight that it trains: values, and bytes of each (None: those of the weight)."""


class Model(NamedTuple):
    """What there is to know of a model before it is loaded."""

    config: PreTrainedConfig
    dtype: torch.dtype
    peft_config: "PeftConfig | None" = None
    trust_remote_code: bool = False


def peak_by_part(
    model: Model, args: KTOConfig, lengths: Sequence[tuple[int, int]], *, ddp: bool = False
) -> dict[str, int]:
    """Bytes by part at the peak of a training step, the second or a later one, on rows of these lengths.

    `{part: bytes}` of `PARTS`, in a process of its own; what the process needs beside its tensors is not in it. Packed,
    unless the model says at once that it cannot be.

    Args:
        model: its config, dtype and adapter; no weights are read.
        args: of the training; `per_device_train_batch_size` is not used.
        lengths: (prompt tokens, completion tokens) of each row of a micro-batch.
        ddp: several processes, each with all weights: its buckets are a second copy of the gradients.

    Raises:
        ValueError: for an optimizer whose state is not known, sharded weights, or activations that are offloaded.
    """
    for name in ("fsdp", "deepspeed", "activation_offloading"):
        if getattr(args, name):
            fix = "Leave it out: an upper bound is what it needs without."
            raise InputError(name, getattr(args, name), "nothing: what it moves off the device is not known here", fix)
    if args.packing is not False:
        try:
            return _peak_by_part(model, args, _batch(args, lengths, packed=True), ddp)
        except CannotPack as error:
            if args.packing:
                fix = f"This model cannot be packed: {error}. Leave packing unset to plan padded batches."
                raise InputError("packing", True, "a model that can be packed", fix) from error
    return _peak_by_part(model, args, _batch(args, lengths, packed=False), ddp)


def _peak_by_part(model: Model, args: KTOConfig, batch: dict[str, Any], ddp: bool) -> dict[str, int]:
    from torch._subclasses.fake_tensor import FakeTensorMode  # of torch's own: only a plan shall depend on it

    values, width = _state(args.optim)
    with torch.device("meta"):  # shapes only: nothing is initialised
        policy = AutoModelForCausalLM.from_config(
            model.config, dtype=model.dtype, trust_remote_code=model.trust_remote_code
        )
        policy, reference, start = policy_and_reference(policy, None, args, model.peft_config)
    holes = HOLES_PER_WORK if args.device.type == "cpu" else 0.0
    with FakeTensorMode(), Footprint(holes) as footprint:
        for each, label in ((policy, WEIGHTS), (reference, REFERENCE)):
            if each is not None:
                with footprint.labelled(label):
                    _materialise(each, args.device)
        if args.gradient_checkpointing:
            policy.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
        policy.train()
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        for parameter in trained:
            footprint.watch_gradient(parameter)
        with footprint.labelled(OPTIMIZER):
            sizes = [values * p.numel() * (width or p.element_size()) for p in trained]
            states = [torch.empty(size, dtype=torch.uint8) for size in sizes]
        with footprint.labelled(GRADIENTS):
            buckets = [torch.empty_like(p) for p in trained if ddp]
        batch = tree_map_only(torch.Tensor, lambda x: torch.empty(x.shape, dtype=x.dtype, device=args.device), batch)
        step = FakeStep(policy, reference, start, args, footprint)
        for _ in range(min(2, args.gradient_accumulation_steps)):
            step.take(batch)
        del states, buckets
    return {part: footprint.at_peak[part] for part in PARTS}


def total(parts: dict[str, int]) -> int:
    """The peak itself."""
    return sum(parts.values())


class Search:
    """What fits in so many bytes, of a model and the arguments of its training; a step is looked at once."""

    def __init__(self, model: Model, args: KTOConfig, *, ddp: bool = False) -> None:
        self.model, self.args, self.ddp = model, args, ddp
        self._known: dict[tuple[int, int], dict[str, int]] = {}

    def parts(self, rows: int, length: int) -> dict[str, int]:
        """`peak_by_part` of `rows_of` so many rows of that length."""
        if (rows, length) not in self._known:
            self._known[rows, length] = peak_by_part(self.model, self.args, rows_of(rows, length), ddp=self.ddp)
        return self._known[rows, length]

    def longest(self, rows: int, length: int, room: int) -> int | None:
        """The longest `max_length`, a multiple of 64 within the model's window, that fits; looks at `length` first."""
        window = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or LONGEST
        tries = [length // 64 * 64, 2 * length // 64 * 64]
        return largest(lambda x: total(self.parts(rows, x)), room, tries, unit=64, most=min(window, LONGEST))

    def most_rows(self, rows: int, length: int, room: int) -> int | None:
        """The largest micro-batch of rows of that length that fits; looks at `rows` first, then near the answer."""
        least = 2 if uses_kl(self.args.loss_type) else 1  # a row's KL completion is another row's
        tokens = [a * b for (a, b), parts in self._known.items() if total(parts) <= room]
        tries = [rows, max(tokens, default=0) // length]
        found = largest(lambda x: total(self.parts(max(x, least), length)), room, tries, unit=1, most=MOST_ROWS)
        return found if found is None or found >= least else None


def process_bytes(device: torch.device) -> int:
    """What a training process needs beside its tensors: its code and the device's context."""
    if device.type == "cuda":
        torch.zeros(1, device=device)
        free, everything = torch.cuda.mem_get_info(device)
        return everything - free - torch.cuda.memory_reserved(device)
    heap.give_back()
    tensors = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for x in gc.get_objects()
        if type(x) in (torch.Tensor, torch.nn.Parameter) and x.device == device and x.layout == torch.strided
    }
    return max(0, int(psutil.Process().memory_info().rss) - sum(tensors.values()))


def largest(need: Callable[[int], int], room: int, tries: Sequence[int], unit: int, most: int) -> int | None:
    """The largest multiple of `unit`, up to `most`, that needs at most `room`; None where `unit` needs more.

    `need` grows, nearly along a line: after the `tries` a guess is where the line through the last two would meet
    `room`, and every third one halves what is left. Ends where the answer is known to one part in 32.
    """
    low, high = 0, most // unit * unit + unit
    known: list[tuple[int, int]] = []
    waiting = list(reversed(tries))
    while (step := max(unit, low // 32 // unit * unit)) < high - low:
        if waiting:
            guess = waiting.pop() // unit * unit
            if known and not low < guess < high:
                continue
        else:
            guess = (low + high) // 2 if len(known) % 3 == 0 else _crossing(known, room)
        # not nearer to what is known than the answer has to be
        guess = max(low + unit, min(max(guess // unit * unit, low + step), high - step))
        known.append((guess, need(guess)))
        low, high = (guess, high) if known[-1][1] <= room else (low, guess)
    return low or None


def _crossing(known: list[tuple[int, int]], room: int) -> int:
    """Where the line through the last two points reaches `room`; with one point, twice or half of it."""
    xx, yy = known[-1]
    x, y = known[-2] if len(known) > 1 else (xx, yy)
    if y == yy:
        return xx * 2 if yy <= room else xx // 2
    return int(xx + (room - yy) * (xx - x) / (yy - y))


def rows_of(batch_size: int, max_length: int) -> list[tuple[int, int]]:
    """Rows as long as they may be, half of each its prompt: (prompt, completion) tokens."""
    return [(max_length // 2, max_length - max_length // 2)] * batch_size


def _state(optim: Any) -> tuple[int, int | None]:
    name = str(getattr(optim, "value", optim))
    if name not in STATES:
        raise InputError("optim", name, f"one of {tuple(STATES)}", "The state of others is not known here.")
    return STATES[name]


def _materialise(model: torch.nn.Module, device: torch.device) -> None:
    """Put tensors of the current mode in the place of those on "meta"; what is shared stays shared."""
    made: dict[int, torch.Tensor] = {}

    def new(x: torch.Tensor) -> torch.Tensor:
        if id(x) not in made:
            made[id(x)] = torch.empty(x.shape, dtype=x.dtype, device=device)
        return made[id(x)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fresh = new(parameter)
                if not isinstance(fresh, torch.nn.Parameter):
                    fresh = torch.nn.Parameter(fresh, requires_grad=parameter.requires_grad)
                    made[id(parameter)] = fresh
                module._parameters[name] = fresh
        for kind in (module._buffers, vars(module)):
            kind.update({name: new(x) for name, x in kind.items() if isinstance(x, torch.Tensor)})


def _batch(args: KTOConfig, lengths: Sequence[tuple[int, int]], *, packed: bool) -> dict[str, Any]:
    """A batch of these rows, every prompt its own, as the collator makes it."""
    kl = uses_kl(args.loss_type)
    rows = [
        {"prompt_ids": [i] * prompt, "completion_ids": [i] * completion, "label": i % 2 == 0}
        for i, (prompt, completion) in enumerate(lengths)
    ]
    if packed:
        return PackingCollator(None, kl=kl, max_tokens=args.max_tokens_per_forward)(rows)
    return PaddingCollator(0, None, kl=kl)(rows)  # type: ignore[return-value]
