"""Mismatched pairs: which row's completion stands as y' behind each prompt of a micro-batch (equation 3)."""

from collections.abc import Sequence

from fastkto.conflicts import check_pairable, conflicts
from fastkto.donors import find_donors
from fastkto.errors import InputError
from fastkto.sampling import PairableSampler
from fastkto.streaming import PairableStream, pairable

__all__ = ["PairableSampler", "PairableStream", "check_pairable", "pair", "pairable"]


def pair(prompt_keys: Sequence[int], conversations: Sequence[int] | None = None) -> list[int]:
    """`donor[i]` is the row whose completion is y'_i: a permutation, never a row of the same prompt or conversation.

    The plain rotation `[(i - 1) % B for i in range(B)]` where it is valid, else the first whole rotation (by two, by
    three, ...) that is, else a matching that prefers small shifts; the same for the same input. Without
    `conversations` every row is its own. Errors: `InputError` where no pairing exists, as for a single row.
    """
    conversations = range(len(prompt_keys)) if conversations is None else conversations
    donors = find_donors(prompt_keys, conversations)
    if donors is None:
        most = max(conflicts(prompt_keys, conversations))
        raise InputError(
            "micro-batch",
            f"{len(prompt_keys)} rows, up to {most} of them with one prompt or conversation",
            "another row's completion for every prompt",
            "Use a larger per_device_train_batch_size (max_tokens_per_forward bounds the memory of one forward), and "
            "PairableSampler or PairableStream for the order of the rows.",
        )
    return donors
