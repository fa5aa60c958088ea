"""In a notebook: the columns of `progress` as a table that grows, and the run's picture under it."""

import html
import io
import time
from typing import Any

from transformers import TrainerControl, TrainerState
from transformers.utils import is_in_notebook

from fastkto.training.output.display.picture import draw
from fastkto.training.output.display.progress import COLUMNS, STOCK, Line, Progress


def shown_by(trainer: Any) -> Progress:
    """What this trainer's progress is shown by, in the place of what the Trainer has chosen."""
    chosen = NotebookProgress() if is_in_notebook() else Progress()
    for stock in STOCK:
        trainer.remove_callback(stock)
    trainer.add_callback(chosen)
    return chosen


class NotebookProgress(Progress):
    """One output cell, which is written anew with each log line, and at most once a second between them."""

    def begin(self, args: Any, state: TrainerState) -> None:
        """Put the table's place into the cell."""
        from IPython.display import HTML, display

        self._rows: list[Line] = []
        self._at, self._last, self._drawn = state.global_step, state.max_steps, 0.0
        self._place = display(HTML(self._html()), display_id=True)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        self._at = state.global_step
        if state.is_world_process_zero and time.monotonic() - self._drawn > 1:
            self._update()

    def show(self, line: Line) -> None:
        """A row more."""
        self._rows.append(line)
        self._update()

    def finish(self, args: Any, text: str) -> None:
        """The table without its bar, and the picture."""
        from IPython.display import Image, display

        self._update(text)
        if not any("left" in line for line in self._rows):
            return
        picture = io.BytesIO()
        draw(args.output_dir).savefig(picture, dpi=100)
        display(Image(picture.getvalue()))

    def _update(self, text: str | None = None) -> None:
        from IPython.display import HTML

        self._drawn = time.monotonic()
        self._place.update(HTML(self._html(text)))

    def _html(self, text: str | None = None) -> str:
        bar = f"<progress value='{self._at}' max='{self._last}'></progress> {self._at} of {self._last} steps"
        titles = "".join(f"<th>{column.title}</th>" for column in COLUMNS)
        cells = ["".join(f"<td>{html.escape(column.text(line))}</td>" for column in COLUMNS) for line in self._rows]
        rows = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table><p>{text or bar}</p>"
