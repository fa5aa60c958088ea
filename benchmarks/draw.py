"""The README's pictures from the newest result files: what a step costs, and how cost grows.

python benchmarks/draw.py
"""

from typing import Any

import matplotlib as mpl
from render import ROOT, clock_of, newest

mpl.use("Agg")
import matplotlib.pyplot as plt

NAMES = {
    "trl": "TRL 1.16",
    "trl-compact": "TRL 1.16,\ncompletions only",
    "fastkto": "fastkto",
    "fastkto-cached": "fastkto,\ncached reference",
    "sft": "SFT,\nsame packed rows",
}
SECONDS = {"cpu": "CPU seconds", "wall": "seconds"}
OURS, OTHERS = "#d95f02", "#999999"
ABOVE: dict[str, Any] = {"textcoords": "offset points", "xytext": (0, 6), "ha": "right", "va": "bottom"}
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_"),
    "attention": ("scaled_dot_product",),
    "head's passes over logits": ("fastkto_native::",),
    "elementwise": ("aten::mul", "aten::add", "aten::silu", "aten::copy_", "aten::div", "aten::neg", "aten::pow"),
}


def cost() -> None:
    """Write docs/cost.png."""
    against_trl, price = newest("step"), newest("price")
    seconds, memory = {}, {}
    for result in (price, against_trl):  # the later one has fastkto and TRL side by side
        scale = against_trl["summary"]["fastkto"][f"{clock_of(against_trl)}_seconds"]
        for system, figures in result["summary"].items():
            seconds[system] = scale * figures["times_as_long"]
            memory[system] = figures["peak_gib"]
    systems = [system for system in NAMES if system in seconds]
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
    unit = f"{SECONDS[clock_of(against_trl)]} a step"
    for axis, values, label in ((axes[0], seconds, unit), (axes[1], memory, "GiB at the peak")):
        colours = [OURS if system.startswith("fastkto") else OTHERS for system in systems]
        bars = axis.barh([NAMES[system] for system in systems], [values[system] for system in systems], color=colours)
        axis.bar_label(bars, fmt="{:.1f}", padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_yticklabels([])
    rows = f"{against_trl['batch']} rows of up to {against_trl['max_length']} tokens"
    figure.suptitle(
        f"One KTO step: {rows}, SmolLM2-135M, float32\n{_where(against_trl)}; times: ratios at fastkto's median",
        fontsize=10,
    )
    figure.savefig(ROOT / "docs" / "cost.png", dpi=130)


def claim() -> None:
    """Write docs/claim.png: the same losses, and what they cost."""
    curves, step = newest("losses"), newest("step")
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, 3.2), layout="constrained", width_ratios=[1.5, 1, 1]
    )
    look: dict[str, dict[str, Any]] = {
        "trl": {"color": OTHERS, "linewidth": 6, "label": "TRL 1.16"},
        "fastkto": {"color": OURS, "linewidth": 1.5, "label": "fastkto"},
    }
    for system, how in look.items():
        losses = [line["loss"] for line in curves["steps"][system]]
        left.plot(range(1, len(losses) + 1), losses, **how)
    left.set(title="the same loss", xlabel="step", ylabel="loss")
    left.legend(frameon=False)
    for axis, name, title in ((middle, "cpu_seconds", "less time"), (right, "peak_gib", "less memory")):
        values = [step["summary"][system][name] for system in look]
        bars = axis.bar([how["label"] for how in look.values()], values, color=[OTHERS, OURS], width=0.6)
        unit = "{:.0f} s" if name == "cpu_seconds" else "{:.1f} GiB"
        axis.bar_label(bars, fmt=unit, padding=2)
        axis.set(title=title, yticks=[])
        axis.margins(y=0.15)
        axis.spines[["top", "right", "left"]].set_visible(False)
    left.spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / "docs" / "claim.png", dpi=130)


def growth() -> None:
    """Write docs/growth.png: memory against length, throughput against batch, time by part."""
    scaling, floor = newest("scaling"), newest("floor")
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for system in scaling["points"][0]["systems"]:
        colour = OURS if system == "fastkto" else OTHERS
        points = _axis(scaling, "max_length", system)
        left.plot(*zip(*((x, found["peak_gib"]) for x, found in points), strict=True), "o-", color=colour)
        left.annotate(NAMES[system], (points[-1][0], points[-1][1]["peak_gib"]), **ABOVE)
        batches = [
            (x, x * scaling["points"][0]["max_length"] / y["wall_seconds"]) for x, y in _axis(scaling, "batch", system)
        ]
        middle.plot(*zip(*batches, strict=True), "o-", color=colour)
        middle.annotate(NAMES[system], batches[-1], **ABOVE)
    for axis in (left, middle):
        axis.margins(y=0.15)
    left.set(xlabel="tokens per row", ylabel="GiB at the peak", ylim=(0, None))
    middle.set(xlabel="rows per batch", ylabel="tokens a second", ylim=(0, None))
    shares = parts_of(floor["profile"])
    right.barh(list(shares), list(shares.values()), color=OURS)
    right.invert_yaxis()
    right.set_xlabel("% of a step")
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
    first = scaling["points"][0]
    figure.suptitle(
        f"Growth: random model of 4 layers, 256 hidden units, {first['vocabulary']} tokens; {_where(scaling)}. "
        f"Time by part: SmolLM2-135M; {_where(floor)}",
        fontsize=9,
    )
    figure.savefig(ROOT / "docs" / "growth.png", dpi=130)


def parts_of(profile: dict[str, list[float]]) -> dict[str, float]:
    """Percent of the profiled seconds by part."""
    total = sum(seconds for seconds, _ in profile.values())
    shares = dict.fromkeys([*PARTS, "other"], 0.0)
    for name, (seconds, _) in profile.items():
        part = next((part for part, words in PARTS.items() if any(word in name for word in words)), "other")
        shares[part] += 100 * seconds / total
    return shares


def _axis(scaling: dict[str, Any], axis: str, system: str) -> list[tuple[int, dict[str, float]]]:
    """Points along one axis, the others at their first value."""
    first = scaling["points"][0]
    others = [name for name in ("max_length", "batch", "vocabulary") if name != axis]
    return [
        (point[axis], point["systems"][system])
        for point in scaling["points"]
        if all(point[name] == first[name] for name in others)
    ]


def _where(result: dict[str, Any]) -> str:
    return f"{result['device']}, {result['date'][:10]}"


if __name__ == "__main__":
    claim()
    cost()
    growth()
