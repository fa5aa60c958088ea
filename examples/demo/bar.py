"""A progress bar with what KTO is about: loss, KL and reward margin."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback


class ProgressBar(TrainerCallback):
    """Inside `with`: the steps done and the newest loss, KL (nats, before the clamp) and reward margin."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._figures = {"loss": None, "kl/raw": None, "rewards/margins": None}

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Show the bar."""
        self._task = self._progress.add_task("", total=state.max_steps, figures="")

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """One step further."""
        self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Newer figures."""
        self._figures.update({key: logs[key] for key in self._figures if key in (logs or {})})
        names = {"loss": "loss {:.3f}", "kl/raw": "KL {:+.2f}", "rewards/margins": "margin {:+.2f}"}
        shown = [names[key].format(value) for key, value in self._figures.items() if value is not None]
        self._progress.update(self._task, figures="  ".join(shown))
