"""All weights or an adapter, how many rows and how long they may be, in the memory that there is."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM

from fastkto.errors import InputError
from fastkto.tools.init.looking import Rows
from fastkto.tools.init.memory import Memory, in_words
from fastkto.tools.plan import Model, Search, total

ROWS = (8, 4, 2)
"""Of a micro-batch, the wanted first; the KL term needs two."""
SHARES = (1.0, 0.95)
"""How many of the rows are whole at `max_length`, the wanted first."""
LEAST_SHARE = 0.5
COPIES = 5
"""Of all weights, where all are trained: themselves, the reference, the gradients and what AdamW keeps."""


class Fit(NamedTuple):
    """What fits."""

    use_peft: bool
    rows: int
    max_length: int
    needs: int
    """Bytes of a step, the process itself included."""
    weights: int
    """How many numbers the model has."""
    full_needs: int | None
    """Of an adapter: what all weights would need at the least."""


def fit(full: Search, adapter: Callable[[], Search], rows: Rows, memory: Memory, process: int) -> Fit:
    """All weights where a step of two rows fits with nearly every row whole, else an adapter.

    Errors: `InputError` where an adapter does not fit with half of the rows whole; it names what would.
    """
    room, weights = memory.size - process, count_weights(full.model)
    full_needs = COPIES * weights * full.model.dtype.itemsize
    if full_needs <= room:
        if (found := _first(full, rows, room)) is not None:
            return Fit(False, *found[:2], found[2] + process, weights, None)
        full_needs = total(full.parts(ROWS[-1], _length(full, rows, SHARES[-1])))
    search = adapter()
    alone = weights * search.model.dtype.itemsize
    if alone > room:
        raise _too_small(memory, alone + process, "for the weights of the model alone")
    if (found := _first(search, rows, room)) is None:
        least = _length(search, rows, LEAST_SHARE)
        length = search.longest(ROWS[-1], least, room)
        if length is None or length < least:
            needs = total(search.parts(ROWS[-1], least)) + process
            raise _too_small(memory, needs, f"for LoRA on {ROWS[-1]} rows of {least} tokens")
        length = min(length, _length(search, rows, SHARES[-1]))
        found = ROWS[-1], length, total(search.parts(ROWS[-1], length))
    return Fit(True, *found[:2], found[2] + process, weights, full_needs + process)


def count_weights(model: Model) -> int:
    """How many numbers a model has, tied ones once; none is read."""
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(
            model.config, dtype=model.dtype, trust_remote_code=model.trust_remote_code
        )
    return sum(parameter.numel() for parameter in made.parameters())


def _first(search: Search, rows: Rows, room: int) -> tuple[int, int, int] | None:
    """The first of `ROWS` by `SHARES` that fits: rows, length, bytes. The batch is cut before the rows are."""
    tries = [(count, _length(search, rows, share)) for share in SHARES for count in ROWS]
    for count, length in [tries[0], tries[-1], *tries[1:]]:  # the last first, without which none of the others fits
        needs = total(search.parts(count, length))
        if needs <= room and (count, length) != tries[-1]:
            return count, length, needs
        if needs > room and (count, length) == tries[-1]:
            return None
    return *tries[-1], total(search.parts(*tries[-1]))


def _length(search: Search, rows: Rows, share: float) -> int:
    """A `max_length` at which that share of the rows is whole, in steps of 64, within the model's window."""
    window = getattr(search.model.config.get_text_config(), "max_position_embeddings", None)
    length = -(-rows.longest(share) // 64) * 64
    return length if window is None else min(length, window)


def _too_small(memory: Memory, needs: int, what: str) -> InputError:
    fix = "Take a smaller model or a larger machine, or name more with --memory."
    return InputError("memory", str(memory), f"at least {in_words(needs)}, {what}", fix)
