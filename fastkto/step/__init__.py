"""One micro-step: the reference's log-probs, then the policy's loss and gradients; and what is logged of it."""

from fastkto.step.micro_step import kto_step
from fastkto.step.reference import Reference

__all__ = ["Reference", "kto_step"]
