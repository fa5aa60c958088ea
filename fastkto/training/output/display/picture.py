"""One picture of a run: loss, z0, rewards, margin, saturation and gradient norm, from its metrics.jsonl."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastkto.disk import METRICS_FILE
from fastkto.errors import InputError, require

CHOSEN, REJECTED, NEUTRAL = "#0072B2", "#D55E00", "#444444"  # told apart by every kind of colour vision
WINDOW = 25  # steps in the running mean that is drawn through runs of more than 4 windows

Series = tuple[list[float], list[float]]


def report(run_dir: str | Path) -> Path:
    """Draw `run_dir`/metrics.jsonl as `run_dir`/report.png, and return its path.

    Rewards and margin are beta times a difference of log-probs; kl and kl/raw are nats: z0 after and before its
    clamp at zero, equation (4) of `fastkto.losses.kto`. A step without a row of one class has no point for that class.

    Raises InputError where there is no metrics.jsonl, or no training step in it; MissingExtra without matplotlib.
    """
    figure = draw(run_dir)
    path = Path(run_dir) / "report.png"
    figure.savefig(path, dpi=120)
    return path


def draw(run_dir: str | Path) -> Any:
    """The matplotlib Figure of `report`."""
    require("matplotlib", "train")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    steps, evaluations = _read(Path(run_dir))
    figure = Figure(figsize=(13, 7), layout=ConstrainedLayoutEngine(wspace=0.04, hspace=0.06))
    for ax, panel in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        panel(ax, steps)
        if panel in EVALUATED:
            _curve(ax, _series(evaluations, f"eval_{EVALUATED[panel]}"), "held-out", "#009E73", marker="s")
        _finish(ax)
    figure.suptitle(_headline(Path(run_dir), steps), x=0.01, ha="left", fontsize=13, weight="bold")
    return figure


def _headline(run_dir: Path, steps: list[dict]) -> str:
    lost = sum(not math.isfinite(line["loss"]) for line in steps)
    broken = f", {lost} of them with a non-finite loss" if lost else ""
    return f"KTO run {run_dir.resolve().name!r}: {len(steps)} logged steps{broken}"


def _loss(ax: Any, steps: list[dict]) -> None:
    ax.set(title="Loss", ylabel="mean over rows")
    _curve(ax, _series(steps, "loss"), "train", NEUTRAL)


def _z0(ax: Any, steps: list[dict]) -> None:
    ax.set(title="Reference point z0", ylabel="nats")
    ax.axhline(0, color="0.7", linewidth=0.8)
    x, raw = _series(steps, "kl/raw")
    if x:
        _band(ax, x, raw, dict(zip(*_series(steps, "kl/stderr"), strict=True)))
    _curve(ax, (x, raw), "before the clamp", "#CC79A7")
    _curve(ax, _series(steps, "kl"), "z0", NEUTRAL)


def _rewards(ax: Any, steps: list[dict]) -> None:
    ax.set(title="Rewards by class", ylabel="β · nats")
    ax.axhline(0, color="0.7", linewidth=0.8)
    _curve(ax, _series(steps, "rewards/chosen"), "desirable", CHOSEN)
    _curve(ax, _series(steps, "rewards/rejected"), "undesirable", REJECTED)


def _margin(ax: Any, steps: list[dict]) -> None:
    ax.set(title="Reward margin, desirable − undesirable", ylabel="β · nats")
    ax.axhline(0, color="0.7", linewidth=0.8)
    _curve(ax, _series(steps, "rewards/margins"), "train", NEUTRAL)


def _saturated(ax: Any, steps: list[dict]) -> None:
    ax.set(title="Saturated rows (gradient weight below 1/10 of its peak)", ylabel="% of rows", ylim=(-3, 103))
    x, y = _series(steps, "saturated")
    _curve(ax, (x, [100 * share for share in y]), "train", NEUTRAL)


def _gradient(ax: Any, steps: list[dict]) -> None:
    ax.set(title="Gradient norm before clipping", ylabel="L2 norm")
    _curve(ax, _series(steps, "grad_norm"), "train", NEUTRAL)
    ax.set_ylim(bottom=0)


PANELS: tuple[Callable[[Any, list[dict]], None], ...] = (_loss, _z0, _rewards, _margin, _saturated, _gradient)
EVALUATED = {_loss: "loss", _margin: "rewards/margins"}


def _band(ax: Any, x: list[float], y: list[float], errors: dict[float, float]) -> None:
    low = [value - errors.get(step, 0.0) for step, value in zip(x, y, strict=True)]
    high = [value + errors.get(step, 0.0) for step, value in zip(x, y, strict=True)]
    ax.fill_between(x, low, high, color="#CC79A7", alpha=0.2, linewidth=0, label="± standard error")


def _curve(ax: Any, series: Series, label: str, color: str, marker: str = "o") -> None:
    x, y = series
    if not x:
        return
    if len(x) <= 4 * WINDOW:
        ax.plot(x, y, color=color, label=label, linewidth=1.8, marker=marker, markersize=3.5)
        return
    ax.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
    ax.plot(x[WINDOW - 1 :], _running_mean(y), color=color, label=f"{label} (mean of {WINDOW})", linewidth=1.8)


def _running_mean(y: list[float]) -> list[float]:
    return [sum(y[end - WINDOW : end]) / WINDOW for end in range(WINDOW, len(y) + 1)]


def _finish(ax: Any) -> None:
    ax.set_title(ax.get_title(), loc="left", fontsize=11)
    ax.set_title("")
    ax.set_xlabel("optimizer step")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", color="0.5")
    elif labels != ["train"]:
        ax.legend(frameon=False, fontsize=9)


def _series(lines: list[dict], key: str) -> Series:
    """Steps and values of `key`, without the lines that lack it. A value that is not finite leaves a gap."""
    points = [(line["step"], line[key]) for line in lines if key in line]
    for step, value in points:
        if not isinstance(value, int | float):
            fix = "Delete the line, or draw another run."
            raise InputError(f"{METRICS_FILE} step {step:g}, {key}", value, "a number", fix)
    return [x for x, _ in points], [y for _, y in points]


def _read(run_dir: Path) -> tuple[list[dict], list[dict]]:
    """The training and the evaluation lines, each by step. A resumed run's repeated step is read as last logged."""
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise InputError(
            "run_dir", str(run_dir), f"a folder that holds {METRICS_FILE}", "Pass the output_dir of a training run."
        )
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]  # a live run may be in the middle of its last line
    lines = [_parse(path, number, line) for number, line in enumerate(whole.splitlines(), 1) if line.strip()]
    steps = {line["step"]: line for line in lines if "loss" in line}
    if not steps:
        raise InputError(str(path), f"{len(lines)} lines", "a logged training step among them", "Lower logging_steps.")
    evaluations = {line["step"]: line for line in lines if "eval_loss" in line}
    return [steps[step] for step in sorted(steps)], [evaluations[step] for step in sorted(evaluations)]


def _parse(path: Path, number: int, line: str) -> dict:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("step"), int | float):
        raise InputError(
            f"{path} line {number}", line, "a JSON object with a step", "Delete the line, or draw another run."
        )
    return parsed
