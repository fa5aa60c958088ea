"""A run that goes wrong although every number is finite, told by its log lines."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

logger = logging.get_logger(__name__)


class CollapseWatch(TrainerCallback):
    """Warns, once a kind, when the last log lines show a run that is going wrong, and names what to change."""

    lines = 3
    low, high = -5.0, 50.0  # nats of kl/raw
    chosen = -1.0  # nats of rewards/chosen / beta: less is the noise of a healthy start

    def __init__(self) -> None:
        self.recent: list[dict[str, float]] = []
        self.warned: set[str] = set()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Forget the lines of an earlier run."""
        self.recent = []

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Look at the newest training line together with those before it."""
        if logs is None or "loss" not in logs:
            return
        self.recent = [*self.recent, logs][-self.lines :]
        if len(self.recent) < self.lines:
            return
        raw = [line["kl/raw"] for line in self.recent if "kl/raw" in line]
        chosen = [line["rewards/chosen"] for line in self.recent if "rewards/chosen" in line]
        if len(raw) == self.lines and max(raw) < self.low:
            self._warn(
                "low",
                args,
                f"kl/raw stayed below {self.low:g} nats ({raw[-1]:.1f}): the policy makes all text less likely",
            )
        if len(chosen) == self.lines and max(chosen) < self.chosen * args.beta:
            self._warn(
                "chosen", args, f"rewards/chosen stayed negative ({chosen[-1]:.2f}): desirable text becomes less likely"
            )
        if len(raw) == self.lines and min(raw) > self.high and raw == sorted(raw):
            self._warn(
                "high",
                args,
                f"kl/raw runs away upwards ({raw[-1]:.1f} nats): every completion becomes likely under any prompt",
            )

    def _warn(self, kind: str, args: Any, what: str) -> None:
        if kind in self.warned:
            return
        self.warned.add(kind)
        logger.warning(
            f"{what}. Lower learning_rate (now {args.learning_rate:g}), raise beta (now {args.beta:g}), or bring "
            f"desirable_weight ({args.desirable_weight}) times the desirable rows to 1 to 1.5 times undesirable_weight "
            f"({args.undesirable_weight}) times the undesirable rows; a batch of one class does this too."
        )
