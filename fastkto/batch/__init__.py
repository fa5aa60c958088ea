"""One micro-batch of tokenised rows as the trunk takes it: in one packed sequence, or padded.

In: rows with `prompt_ids`, `completion_ids` and `label`. Out: a dict, described in `PackingCollator` and `PaddedBatch`.

    targets_and_kl  the ids of [x y] and of [x y'] (`pairs/matching` chooses the y'), cut at `max_length`; keys
    packed          the order of tokens in a sequence, their positions, which are scored, the split at `max_tokens`
    padded          the same in a rectangle, for models that cannot be packed
    layout          offsets by which the attention finds the rows; what a layer keeps for its KL rows

Two rows in one sequence, [x1 y1 | x2 y2 || y'1 y'2]. Here y'1 is y2 and y'2 is y1. Prompts are there once, and the
positions of a y' follow its prompt's. A place is scored where it predicts a token of y; a prompt's last place predicts
the first token of y and of y'.

>>> rows = [
...     {"prompt_ids": [10, 11], "completion_ids": [12], "label": True},
...     {"prompt_ids": [20], "completion_ids": [21, 22], "label": False},
... ]
>>> (sequence,) = PackingCollator(max_length=8)(rows)["sequences"]
>>> sequence["input_ids"].tolist(), sequence["position_ids"].tolist()
([[10, 11, 12, 20, 21, 22, 21, 22, 12]], [[0, 1, 2, 0, 1, 2, 2, 3, 1]])
>>> sequence["logit_index"].tolist(), sequence["KL_logit_index"].tolist()
([1, 3, 4], [1, 6, 3])
"""

from fastkto.batch.layout import Layout
from fastkto.batch.packed import PackingCollator
from fastkto.batch.padded import PaddingCollator

__all__ = ["Layout", "PackingCollator", "PaddingCollator"]
