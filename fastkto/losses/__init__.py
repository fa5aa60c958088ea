"""Losses on log-probs: pure functions of tensors, one file an idea.

In: the summed log-probs of the rows and of their mismatched pairs, under the policy and under the reference, and the
labels. Out: the loss, and what is logged of it. Nothing here knows a model, a head or a device.

    kto     equations (2) to (7) of the README, one function each; `kto_loss`, which puts them together; `LOSS_TYPES`
    checks  arguments that cannot be right, each in a sentence

The head needs the loss in two halves, because ranks add up z0 between them: `head/backends/loss_terms` puts them
together from the functions of kto, and `kernels/fastkto_kernels/kto.py` has them as two kernels. An equation is changed
here first; the tests of the other two compare them with this file.
"""

from fastkto.losses.kto import KTOLoss, kto_loss

__all__ = ["KTOLoss", "kto_loss"]
