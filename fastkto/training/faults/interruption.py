"""SIGTERM, as schedulers send it before they take a machine away: a checkpoint, then the end."""

import signal
import threading
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

logger = logging.get_logger(__name__)

EXIT_CODE = 128 + signal.SIGTERM


class Interruption(TrainerCallback):
    """Ends a run at the optimizer step in which any process was told to, with a checkpoint of that step.

    Every process votes with the rows that it counts at the beginning of a step, so that all stop at the same one.
    """

    def __init__(self) -> None:
        self.asked = self.stopped = False
        self._votes: torch.Tensor | None = None
        self._before: Any = None

    def __enter__(self) -> "Interruption":
        self.asked = self.stopped = False
        self._votes = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _on_signal(self, number: int, frame: object) -> None:
        self.asked = True  # a launcher and a scheduler may both send it: the second is no reason to leave faster

    def vote(self, rows: float, device: torch.device) -> torch.Tensor:
        """What a process brings to the sum over ranks at the beginning of a step."""
        return torch.tensor([rows, float(self.asked)], device=device, dtype=torch.float32)

    def count(self, sums: torch.Tensor) -> torch.Tensor:
        """Take the votes out of that sum; the rows of all ranks."""
        rows, self._votes = sums.unbind()
        return rows

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Finish this step, save, and stop."""
        if self.asked if self._votes is None else self._votes.item() > 0:
            self.stopped = control.should_save = control.should_training_stop = True

    def leave(self, args: Any, state: TrainerState) -> None:
        """End the process as SIGTERM would have, if that is why training ended."""
        if not self.stopped:
            return
        if state.is_world_process_zero:
            logger.warning(
                f"SIGTERM: stopped after step {state.global_step}, saved in "
                f"{args.output_dir}/checkpoint-{state.global_step}. Resume with resume_from_checkpoint=true."
            )
        raise SystemExit(EXIT_CODE)
