"""Class balance: the paper's rule for the weights, and micro-batches that hold one class only."""

from collections.abc import Sequence
from math import exp, lgamma

from fastkto.errors import InputError

ONE_CLASS_LIMIT = 0.05
"""The share of micro-batches that hold one class above which a user is told."""
SHUFFLED = ("random", "group_by_length")
"""The strategies whose batches hold the classes that chance gives them."""


def weight_range(n_desirable: int, n_undesirable: int, undesirable_weight: float = 1.0) -> tuple[float, float]:
    """The desirable weights that the paper's rule allows: lambda_D n_D / (lambda_U n_U) in [1, 3/2].

    Errors: `InputError` where the data holds one class only: no weight balances it.
    """
    if not (n_desirable and n_undesirable):
        raise InputError(
            "label",
            f"{n_desirable} desirable and {n_undesirable} undesirable rows",
            "rows of both classes",
            "Add rows of the other class, or set both weights yourself.",
        )
    low = undesirable_weight * n_undesirable / n_desirable
    return low, 1.5 * low


def auto_desirable_weight(n_desirable: int, n_undesirable: int, undesirable_weight: float = 1.0) -> float:
    """The desirable weight that the rule allows and that is nearest to the undesirable one (equal where allowed)."""
    low, high = weight_range(n_desirable, n_undesirable, undesirable_weight)
    return min(max(undesirable_weight, low), high)


def obeys_rule(n_desirable: int, n_undesirable: int, desirable_weight: float, undesirable_weight: float) -> bool:
    """Whether lambda_D n_D / (lambda_U n_U) is in [1, 3/2], rounding apart; never for one class."""
    if not (n_desirable and n_undesirable):
        return False
    low, high = weight_range(n_desirable, n_undesirable, undesirable_weight)
    return low * (1 - 1e-9) <= desirable_weight <= high * (1 + 1e-9)


def one_class_share(n_desirable: int, n_undesirable: int, batch_size: int) -> float:
    """The expected share of shuffled micro-batches that hold one class: (C(n_D, B) + C(n_U, B)) / C(n_D + n_U, B)."""
    rows = n_desirable + n_undesirable
    size = min(batch_size, rows)
    if not rows:
        return 0.0
    return sum(exp(_log_choose(n, size) - _log_choose(rows, size)) for n in (n_desirable, n_undesirable) if n >= size)


def one_class_share_of(order: Sequence[int], labels: Sequence[bool], batch_size: int) -> float:
    """The share of micro-batches of one class in an order of rows: for strategies that do not only shuffle."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return sum(len({labels[row] for row in batch}) == 1 for batch in batches) / max(1, len(batches))


def batch_size_for(n_desirable: int, n_undesirable: int, share: float = ONE_CLASS_LIMIT) -> int | None:
    """The smallest batch size of which at most `share` of the micro-batches hold one class; None for one-class data."""
    if not (n_desirable and n_undesirable):
        return None
    low, high = 1, n_desirable + n_undesirable
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if one_class_share(n_desirable, n_undesirable, middle) <= share else (middle + 1, high)
        )
    return low


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
