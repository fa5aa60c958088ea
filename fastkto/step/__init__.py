"""One micro-step: the reference's log-probs, then the policy's loss and gradients; and what is logged of it.

In: a batch of `batch/`, how the policy is run (`trunk/run`) and the settings of the loss. Out: the loss with its graph,
and the sums that a log line is made of.

    micro_step       trunk, head and loss in a row: one fused call, or several forwards that share one z0
    reference        the log-probs that the policy is held against, computed or cached; what a cache was made for
    reference_model  a frozen copy, or the policy with its adapter off or as it was at the start; the fingerprint
    logp_cache       the reference's log-probs on disk: the SQLite file
    probe            is packing right for this model? Tried on a few rows before training, answered with a reason
    lengths          the same for padded batches and at every length; later tokens, and learned positions
    metrics          what is logged: the sums of a micro-step, and the figures of a line (`docs/metrics.md`)

A cached log-prob is found by the fingerprint of the model and the content key of its row (`batch/targets_and_kl`).
The order in a step: Reference -> kto_step -> step_sums. The trainer puts it together in `training/trainer`.
"""

from fastkto.step.micro_step import kto_step
from fastkto.step.reference import Reference

__all__ = ["Reference", "kto_step"]
