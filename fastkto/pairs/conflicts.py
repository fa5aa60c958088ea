"""Which rows may not exchange completions, and how many rows an epoch needs so that every batch has a pairing."""

from collections import Counter
from collections.abc import Iterator, Sequence

from fastkto.errors import InputError
from fastkto.losses.kto import check_rows_to_pair


def conflicts(prompt_keys: Sequence[int], conversations: Sequence[int]) -> list[int]:
    """For each row of a batch: how many rows, itself included, share its prompt or its conversation."""
    both = list(zip(prompt_keys, conversations, strict=True))
    by_key, by_conversation, by_both = Counter(prompt_keys), Counter(conversations), Counter(both)
    return [by_key[key] + by_conversation[conversation] - by_both[key, conversation] for key, conversation in both]


def excess(prompt_keys: Sequence[int], conversations: Sequence[int]) -> int:
    """By how much a batch misses the criterion that makes it pairable; 0: a pairing exists.

    A row may conflict with at most half of the batch. Every row then has at least half of it as possible donors, and
    is a possible donor to at least half: a perfect matching exists (Hall).
    """
    half = len(prompt_keys) // 2
    if half and len({*prompt_keys}) == len({*conversations}) == len(prompt_keys):
        return 0
    return sum(max(0, count - half) for count in conflicts(prompt_keys, conversations))


def capacity(rows: int, batch_size: int) -> int:
    """How many rows of one prompt fit into an epoch of `rows` rows: at most half of each batch."""
    whole, rest = divmod(rows, batch_size)
    return whole * (batch_size // 2) + rest // 2


def check_pairable(
    prompt_keys: Sequence[int], conversations: Sequence[int], batch_size: int, *, world_size: int = 1
) -> int:
    """The number of rows in an epoch in which every batch can be paired: all of them, and refills.

    A last batch of one row is refilled, as is one in which too many rows share a prompt; with `world_size` > 1 the
    epoch is filled up to whole batches for every rank. Errors: `InputError` for one row, one prompt, a prompt (or
    conversation) too common to be paired even if every other row is seen twice, and a batch of one row.
    """
    rows = len(prompt_keys)
    check_rows_to_pair("per_device_train_batch_size", batch_size)
    groups = [Counter(prompt_keys[:]), Counter(conversations[:])]
    if rows < 2 or any(len(group) == 1 for group in groups):
        what = "row" if rows < 2 else "prompt" if len(groups[0]) == 1 else "conversation"
        raise InputError(
            "dataset",
            f"{rows} rows with one {what}",
            f"at least two {what}s, because the KL term pairs a prompt with the completion of another",
            "Add rows, or use loss_type='apo_zero_unpaired', which has no KL term.",
        )
    largest = max(max(group.values()) for group in groups)
    fewest = min(map(len, groups))
    for total in _totals(rows, 2 * rows - largest, batch_size, world_size):
        most = capacity(total, batch_size)
        if total % batch_size != 1 and largest <= most and fewest * most >= total:
            return total
    raise unpairable(rows, batch_size, largest)


def unpairable(rows: int, batch_size: int, largest: int | None = None) -> InputError:
    """The error for data of which `largest` rows share a prompt or a conversation: too many for every batch."""
    many = "too many" if largest is None else str(largest)
    return InputError(
        "dataset",
        f"{rows} rows, {many} of them with one prompt or conversation",
        f"at most half of each batch of {batch_size} with one",
        "Remove some of these rows, add others, or choose another (an even) batch size.",
    )


def _totals(rows: int, most: int, batch_size: int, world_size: int) -> Iterator[int]:
    if world_size == 1:
        return iter(range(rows, most + 1))
    step = batch_size * world_size
    first = -(-rows // step) * step
    return iter(range(first, max(first, most) + 1, step))
