"""`README.md` beside a trained model: what was trained on what, how, with which figures, and how to do it again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

FILE = "README.md"
MARK = "- fastkto\n"
FIGURES = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "kl", "num_tokens")


def write_card(folder: Path, text: str) -> None:
    """Put the card into the folder, in the place of one by us or by peft; anyone else's stays."""
    path = folder / FILE
    if path.is_file():
        before = path.read_text(encoding="utf-8", errors="replace")
        if MARK not in before and "library_name: peft" not in before:
            logger.warning(f"{path} is not a model card of ours: it stays, and none is written.")
            return
    path.write_text(text, encoding="utf-8")


def card(
    name: str,
    base: str | None,
    about: Mapping[str, Any],
    settings: Mapping[str, Any],
    data: Sequence[str],
    history: Sequence[Mapping[str, float]],
    tags: Sequence[str],
    rerun: str | None,
) -> str:
    """The card's text. `about`: a `RunRecord`'s; `settings`: those that are not defaults; `history`: the log lines."""
    adapter = bool(about["adapter"])
    library = "peft" if adapter else "transformers"
    head = ["---", *([f"base_model: {base}"] if base else []), f"library_name: {library}"]
    head += ["tags:", *(f"- {tag}" for tag in tags), "---", ""]
    what = "An adapter" if adapter else "A model"
    lines = [
        *(f"# {name}", ""),
        f"{what} trained{f' from {base}' if base else ''} on thumbs-up / thumbs-down feedback with "
        "[KTO](https://arxiv.org/abs/2402.01306) by fastkto.",
        *("", "## Data", "", "```", *(data or ["a stream, which was not counted"]), "```", ""),
        *("## Figures", "", "| | first log line | last log line |", "|---|---|---|", *_figures(history), ""),
        *("## Settings that are not the defaults", "", "| field | value |", "|---|---|"),
        *(f"| `{field}` | `{value}` |" for field, value in settings.items()),
        *("", "## Versions", "", ", ".join(f"{name} {version}" for name, version in about["versions"].items()), ""),
    ]
    if rerun is not None:
        lines += ["## The same run again", "", "```sh", rerun, "```", ""]
    return "\n".join([*head, *lines])


def _figures(history: Sequence[Mapping[str, float]]) -> list[str]:
    steps = [line for line in history if "loss" in line]
    if not steps:
        return []
    rows = [f"| step | {steps[0]['step']} | {steps[-1]['step']} |"]
    rows += [f"| {name} | {steps[0][name]:.6g} | {steps[-1][name]:.6g} |" for name in FIGURES if name in steps[-1]]
    evaluated = [line for line in history if "eval_loss" in line]
    if evaluated:
        names = ["eval_loss", *(f"eval_{name}" for name in FIGURES[1:-1])]
        first, last = evaluated[0], evaluated[-1]
        rows += [f"| {name} | {first[name]:.6g} | {last[name]:.6g} |" for name in names if name in last]
    return rows
