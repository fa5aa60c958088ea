"""Which row's completion stands as y' behind each prompt of a micro-batch (equation 3): a rotation, else a matching."""

from collections import deque
from collections.abc import Sequence

from fastkto.errors import InputError
from fastkto.pairs.conflicts import conflicts


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


def find_donors(prompt_keys: Sequence[int], conversations: Sequence[int]) -> list[int] | None:
    """For each row another row of another prompt and conversation, as a permutation; None where none exists.

    The first whole rotation that is valid, else a matching in which earlier rows get their smallest free shift.
    """
    rows = len(prompt_keys)

    def valid(row: int, donor: int) -> bool:
        return prompt_keys[row] != prompt_keys[donor] and conversations[row] != conversations[donor]

    for shift in range(1, rows):
        if all(valid(row, row - shift) for row in range(rows)):
            return [(row - shift) % rows for row in range(rows)]
    return _matching([[(i - s) % rows for s in range(1, rows) if valid(i, (i - s) % rows)] for i in range(rows)])


def _matching(choices: list[list[int]]) -> list[int] | None:
    """A perfect matching of rows to donors by shortest augmenting paths, earlier choices first; None if none exists."""
    donor_of: list[int | None] = [None] * len(choices)
    row_of: dict[int, int] = {}
    for root in range(len(choices)):
        reached: dict[int, int] = {}  # donor -> the row that it was reached from
        queue, free = deque([root]), None
        while queue and free is None:
            row = queue.popleft()
            for donor in choices[row]:
                if donor not in reached:
                    reached[donor] = row
                    if donor not in row_of:
                        free = donor
                        break
                    queue.append(row_of[donor])
        if free is None:
            return None
        step: int | None = free
        while step is not None:
            row = reached[step]
            row_of[step], donor_of[row], step = row, step, donor_of[row]
    return [donor for donor in donor_of if donor is not None]
