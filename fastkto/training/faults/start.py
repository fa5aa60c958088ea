"""The first micro-batch of a run: how far the policy already is from its reference."""

from typing import Any

from transformers.utils import logging

from fastkto.config import KTOConfig
from fastkto.head.fused_kto import FusedKTO
from fastkto.step.reference_model import StartingWeights

logger = logging.get_logger(__name__)


class StartCheck:
    """Says once how far an adapter is from its reference where the two should be equal, and are not.

    A new adapter that does not start as the identity (FourierFT) is another model than the one with the adapter off,
    which is its reference (TRL's rule).
    """

    def __init__(self, start: StartingWeights | None, args: KTOConfig) -> None:
        noisy = bool(args.neftune_noise_alpha) or not args.disable_dropout  # which the reference is without
        self.start = None if noisy else start

    def __call__(self, out: FusedKTO, beta: float, state: Any) -> None:
        """Look at the first micro-batch of a run that was not resumed; waits for the device that once."""
        start, self.start = self.start, None
        if start is None or state.global_step > 0:
            return
        gap = (out.rewards.abs().max() / beta).item()
        if gap > 0:
            other = "the model with the adapter off" if start.adapter_off else "itself"
            logger.warning(
                f"Before the first step a row's log-prob is up to {gap:.3g} nats from the reference's ({other}): this "
                "adapter does not start as the identity."
            )
