"""`README.md` beside a trained model: what was trained on what, how, with which figures, and how to do it again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from fastkto.training.output.card.serving import Use

logger = logging.get_logger(__name__)

FILE = "README.md"
MARK = "- fastkto\n"
FIGURES = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "kl", "num_tokens")


def write_card(folder: Path, text: str) -> None:
    """Put the card into the folder, in the place of one by us or by peft; anyone else's stays."""
    path = folder / FILE
    if path.is_file() and not is_ours(path):
        logger.warning(f"{path} is not a model card of ours: it stays, and none is written.")
        return
    path.write_text(text, encoding="utf-8")


def is_ours(path: Path) -> bool:
    """Whether a README is a card by us or by peft."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return MARK in text or "library_name: peft" in text


def card(
    name: str,
    base: str | None,
    about: Mapping[str, Any],
    settings: Mapping[str, Any],
    data: Sequence[str],
    history: Sequence[Mapping[str, float]],
    tags: Sequence[str],
    rerun: str | None,
    uses: Sequence[Use],
) -> str:
    """The card's text. `about`: a `RunRecord`'s; `settings`: those that are not defaults; `history`: the log lines."""
    hub, base = (None, Path(base).name) if base and Path(base).is_dir() else (base, base)  # a path is nobody else's
    adapter = bool(about["adapter"])
    library = "peft" if adapter else "transformers"
    head = ["---", *([f"base_model: {hub}"] if hub else []), f"library_name: {library}"]
    head += ["tags:", *(f"- {tag}" for tag in tags), "---", ""]
    what = "An adapter" if adapter else "A model"
    lines = [
        *(f"# {name}", ""),
        f"{what} trained{f' from {base}' if base else ''} on thumbs-up / thumbs-down feedback with "
        "[KTO](https://arxiv.org/abs/2402.01306) by fastkto.",
        *("", "## Use it", "", *(line for use in uses for line in _use(use))),
        *("## Data", "", "```", *(data or ["a stream, which was not counted"]), "```", ""),
        *("## Figures", "", "| | first | last |", "|---|---|---|", *_figures(history), ""),
        *("## Settings that are not the defaults", "", "| field | value |", "|---|---|"),
        *(f"| `{field}` | `{value}` |" for field, value in settings.items()),
        *("", "## Versions", "", ", ".join(f"{name} {version}" for name, version in about["versions"].items()), ""),
    ]
    if rerun is not None:
        lines += ["## The same run again", "", "```sh", rerun, "```", ""]
    return "\n".join([*head, *lines])


def _use(use: Use) -> list[str]:
    return [f"{use.program}:", "", "```sh", use.commands, "```", *(["", use.note] if use.note else []), ""]


def _figures(history: Sequence[Mapping[str, float]]) -> list[str]:
    """Each figure where it was first logged and where last: a line lacks those of a class that it has not."""
    rows = []
    for name in ("step", *FIGURES, "eval_loss", *(f"eval_{name}" for name in FIGURES[1:-1])):
        about = "eval_loss" if name.startswith("eval_") else "loss"
        values = [line[name] for line in history if about in line and name in line]
        if values:
            rows.append(f"| {name} | {values[0]:.6g} | {values[-1]:.6g} |")
    return rows
