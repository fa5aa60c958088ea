"""SIGTERM of a scheduler, Ctrl-C, a terminal that closes: a checkpoint, then the end. A second Ctrl-C ends at once."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

logger = logging.get_logger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PASSED_ON = 1.0
"""Seconds in which a second Ctrl-C is the first one, passed on by a launcher."""
NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C", signal.SIGHUP: "SIGHUP"}


class Interruption(TrainerCallback):
    """Ends a run at the optimizer step in which any process was told to, with a checkpoint of that step.

    Every process votes with the rows that it counts at the beginning of a step, so that all stop at the same one.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.stopped: signal.Signals | None = None
        self._unjudged = False
        self._votes: torch.Tensor | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._pressed: float | None = None

    def __enter__(self) -> "Interruption":
        self.asked = self.stopped = self._votes = self._pressed = None
        self._unjudged = False
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _on_signal(self, number: int, frame: object) -> None:
        told = signal.Signals(number)
        if told is signal.SIGINT:
            now = time.monotonic()
            if self._pressed is None:  # not by the log, which may be what was interrupted
                self._pressed = now
                os.write(2, b"\nCtrl-C: this step is finished, then saved. Once more stops at once.\n")
            elif now - self._pressed > PASSED_ON:
                raise KeyboardInterrupt
        self.asked = self.asked or told  # a launcher and a scheduler may both send SIGTERM: no reason to leave faster

    def vote(self, rows: float, device: torch.device) -> torch.Tensor:
        """What a process brings to the sum over ranks at the beginning of a step."""
        return torch.tensor([rows, *(float(self.asked is x) for x in SIGNALS)], device=device, dtype=torch.float32)

    def count(self, sums: torch.Tensor) -> torch.Tensor:
        """Take the votes out of that sum; the rows of all ranks."""
        rows, self._votes = sums[0], sums[1:]
        return rows

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Finish this step, save, and stop."""
        self.stopped = self.asked
        if self._votes is not None:
            votes = self._votes.tolist()
            self.stopped = SIGNALS[votes.index(max(votes))] if any(votes) else None
        if self.stopped is not None:
            control.should_save = control.should_training_stop = True

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """No evaluation in front of the checkpoint: what told the run to stop may not wait for it."""
        if self.stopped is not None and control.should_evaluate:
            control.should_evaluate, self._unjudged = False, True

    on_epoch_end = on_step_end

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """The Trainer's last line: it then loads the best checkpoint and, of one that is kept, erases all others."""
        if self.stopped is not None and "train_runtime" in (logs or {}):
            state.best_model_checkpoint = None

    def leave(self, args: Any, state: TrainerState) -> None:
        """End the process as the signal would have, if that is why training ended."""
        if self.stopped is None:
            return
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            saved = (
                f"saved in {folder}. Resume" if folder.is_dir() else "which no checkpoint holds. Resume an earlier one"
            )
            unjudged = " Its evaluation was left out." if self._unjudged else ""
            logger.warning(
                f"{NAMES[self.stopped]}: stopped after step {state.global_step}, {saved} with "
                f"resume_from_checkpoint=true.{unjudged}"
            )
        if self.stopped is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.stopped)
