"""Arguments of a loss that cannot be right, each in a sentence; nothing here waits for a GPU."""

import math
from collections.abc import Callable, Sequence

import torch

from fastkto.errors import InputError


def check_tensor(name: str, given: object, dimensions: int, like: torch.Tensor | None = None) -> None:
    """Raise `InputError` unless it is a tensor of so many dimensions, on the device of `like`."""
    if not isinstance(given, torch.Tensor):
        raise InputError(name, type(given).__name__, "a tensor", "Convert it with torch.as_tensor.")
    if given.ndim != dimensions:
        wanted = {1: "one dimension", 2: "two dimensions"}[dimensions]
        raise InputError(name, tuple(given.shape), wanted, "Reshape it: another shape would broadcast.")
    if like is not None and given.device != like.device:
        raise InputError(name, str(given.device), f"the device of the rest, {like.device}", "Move it there.")


def check_loss_arguments(
    rows: int,
    ref_logps: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    like: torch.Tensor | None = None,
) -> None:
    """Raise `InputError` unless each holds one entry a row, on the device of `like`."""
    given_each: list[tuple[str, torch.Tensor]] = [("labels", labels), ("ref_logps", ref_logps)]
    for name, given in given_each + ([] if weights is None else [("weights", weights)]):
        check_tensor(name, given, 1, like)
        if given.shape != (rows,):
            raise InputError(name, tuple(given.shape), f"({rows},), one per row", "Pass one entry per row.")
    if labels.dtype != torch.bool:
        fix = "Convert on purpose, e.g. labels == 1; -1/1 would all read as true."
        raise InputError("labels", labels.dtype, "a bool tensor", fix)
    if weights is not None:
        _check_weights(weights)


def check_numbers(
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    num_rows: float | torch.Tensor | None,
    weights: torch.Tensor | None,
) -> None:
    """Raise `InputError` for a number of the loss that is out of range."""
    if not 0 < beta < math.inf:
        raise InputError("beta", beta, "a number above 0", "0.1 is the usual start.")
    for name, value in (("desirable_weight", desirable_weight), ("undesirable_weight", undesirable_weight)):
        if not 0 <= value < math.inf:
            raise InputError(name, value, "a number from 0 on", "1.0 is the usual one.")
    if not isinstance(num_rows, int | float):
        return
    if not 0 <= num_rows < math.inf or (num_rows == 0 and weights is None):
        fix = "Pass the rows of the whole optimizer step, or leave it out."
        raise InputError("num_rows", num_rows, "a number above 0", fix)


def reduced(sum_and_count: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor] | None) -> torch.Tensor:
    """`reduce(sum_and_count)`, or itself without one. Errors: `InputError` for a `reduce` that returns no sum."""
    if reduce is None:
        return sum_and_count
    found: object = reduce(sum_and_count)
    if not isinstance(found, torch.Tensor) or found.shape != sum_and_count.shape:
        fix = "dist.all_reduce works in place and returns None: call it in a function that returns its argument."
        raise InputError("reduce", found, "a function that returns the sum over ranks", fix)
    return found


def check_pairs(shape: Sequence[int], ref_kl_logps: torch.Tensor | None) -> torch.Tensor:
    """The reference's log-probs of mismatched pairs of this shape, or an `InputError`."""
    if ref_kl_logps is None:
        raise no_pairs()
    if tuple(shape) != tuple(ref_kl_logps.shape) or ref_kl_logps.numel() == 0:
        raise InputError(
            "ref_kl_logps",
            tuple(ref_kl_logps.shape),
            f"the non-empty shape of kl_logps, {tuple(shape)}",
            "Score the same pairs with both models.",
        )
    return ref_kl_logps


def no_pairs() -> InputError:
    """Where the KL term lacks its rows."""
    return InputError(
        "kl_logps and ref_kl_logps",
        None,
        'the log-probs of the mismatched pairs for loss_type="kto"',
        'Pass both, or choose loss_type="apo_zero_unpaired", which has no KL term.',
    )


def _check_weights(weights: torch.Tensor) -> None:
    if not weights.is_floating_point():
        raise InputError("weights", weights.dtype, "a tensor of floats", "Convert it: weights.float().")
    if weights.device.type != "cpu" or torch.compiler.is_compiling():
        return
    bad = ~weights.isfinite() | (weights < 0)
    if bad.any():
        fix = "A weight of 0 leaves a row out of the loss."
        raise InputError("weights", weights[bad][0].item(), "finite numbers from 0 on", fix)
