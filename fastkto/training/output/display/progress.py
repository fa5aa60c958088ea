"""What a training prints: of each log line what matters, in columns that fit the terminal; metrics.jsonl has it all."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.utils import logging

from fastkto.errors import escaped

Line = Mapping[str, Any]
STOCK = (PrinterCallback, DEFAULT_PROGRESS_CALLBACK)
"""What the Trainer prints with, in whose place one of ours stands."""
HEADER_EVERY = 40  # lines


class Column(NamedTuple):
    """One figure of a log line. Where there is no room for all, those with the highest `rank` are left out."""

    title: str
    width: int
    rank: int
    text: Callable[[Line], str]


def number(name: str, digits: int) -> Callable[[Line], str]:
    """The text of a figure; nothing where the line has none, as without a class."""

    def text(line: Line) -> str:
        value = line.get(name)
        if value is None:
            return ""
        return f"{value:.{digits}f}" if abs(value) < 1000 or math.isnan(value) else f"{value:.2g}"

    return text


def accuracy(line: Line) -> str:
    """The share of rows that are on their label's side."""
    value = line.get("rewards/accuracies")
    return "" if value is None else f"{value:.0%}"


COLUMNS = (
    Column("step", 13, 0, lambda line: str(line["at"])),
    Column("loss", 8, 1, number("loss", 4)),
    Column("kl", 8, 4, number("kl", 3)),
    Column("margin", 8, 2, number("rewards/margins", 3)),
    Column("accuracy", 9, 5, accuracy),
    Column("tokens/s", 9, 6, lambda line: f"{line['speed']:,.0f}" if line.get("speed") else ""),
    Column("left", 9, 3, lambda line: line.get("left", "")),
)


def fitting(width: int) -> list[Column]:
    """The columns that have room, in their order; the first two always."""
    kept = list(COLUMNS)
    while sum(column.width for column in kept) > width and len(kept) > 2:
        kept.remove(max(kept, key=lambda column: column.rank))
    return kept


def header(columns: Sequence[Column]) -> str:
    """The titles over the columns."""
    return "".join(column.title.rjust(column.width) for column in columns)


def row(line: Line, columns: Sequence[Column]) -> str:
    """A log line under them."""
    return "".join(column.text(line).rjust(column.width) for column in columns).rstrip()


def duration(seconds: float) -> str:
    """As m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress(TrainerCallback):
    """A line of columns for each log line, on stdout; under a bar where that is a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._bars = False
        self._lines = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock, and the bar."""
        self._begin, self._first, self._lines = time.monotonic(), state.global_step, 0
        self._since, self._tokens = self._begin, tokens_so_far(state)
        if not state.is_world_process_zero:
            return
        self._bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # "Writing model shards", in the middle of it
        self.begin(args, state)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(0, completed=state.global_step, doing="training")

    def on_prediction_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say in the bar that this is an evaluation."""
        if self._bar is not None:
            self._bar.update(0, doing="evaluating")

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Print the line."""
        logs = dict(logs or {})
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        if "loss" in logs:
            self.show(logs | {"at": f"{state.global_step}/{state.max_steps}"} | self._clock(state, logs))
        elif prefix := next((name[:-4] for name in logs if name.startswith("eval_") and name.endswith("_loss")), None):
            of = prefix.removeprefix("eval_").rstrip("_")  # one of several sets
            line = {name.removeprefix(prefix): value for name, value in logs.items()}
            self.show(line | {"at": f"eval {escaped(of)}"[:12] if of else "evaluation"})
        else:  # by a callback of the user's
            self._print(escaped(", ".join(f"{name} {value}" for name, value in logs.items())))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the bar away, and say what it took."""
        self.__exit__()
        if state.is_world_process_zero:
            steps = state.global_step - self._first
            self.finish(args, f"{steps} steps in {duration(time.monotonic() - self._begin)}.")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._bars:
            logging.enable_progress_bar()
            self._bars = False

    def begin(self, args: Any, state: TrainerState) -> None:
        """Start the bar."""
        if not args.disable_tqdm and sys.stdout.isatty():
            self._bar = _bar(state)

    def show(self, line: Line) -> None:
        """One line, under its titles."""
        columns = fitting(shutil.get_terminal_size().columns)
        if self._lines % HEADER_EVERY == 0:
            self._print(header(columns))
        self._lines += 1
        self._print(row(line, columns))

    def finish(self, args: Any, text: str) -> None:
        """The last line."""
        self._print(text)

    def _print(self, text: str) -> None:
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _clock(self, state: TrainerState, logs: Line) -> dict[str, Any]:
        """Tokens a second since the last line, and the time that is left."""
        now, tokens = time.monotonic(), logs.get("num_tokens", self._tokens)
        speed = (tokens - self._tokens) / max(now - self._since, 1e-9)
        self._since, self._tokens = now, tokens
        done = state.global_step - self._first
        each = (now - self._begin) / max(done, 1)
        return {"speed": speed, "left": duration(each * (state.max_steps - state.global_step))}


def tokens_so_far(state: TrainerState) -> float:
    """Tokens trained on up to the last log line, those before a resume included."""
    return next((line["num_tokens"] for line in reversed(state.log_history) if "num_tokens" in line), 0.0)


def _bar(state: TrainerState) -> Any:
    """rich's, where it is installed."""
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    columns = TextColumn("{task.fields[doing]}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, transient=True)
    bar.add_task("", total=state.max_steps, completed=state.global_step, doing="training")
    bar.start()
    return bar
