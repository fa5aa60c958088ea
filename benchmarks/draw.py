"""The README's picture of what a step costs, from the newest result files.

python benchmarks/draw.py
"""

import matplotlib as mpl
from render import ROOT, newest

mpl.use("Agg")
import matplotlib.pyplot as plt

NAMES = {
    "trl": "TRL 1.16",
    "trl-compact": "TRL 1.16,\ncompletions only",
    "fastkto": "fastkto",
    "fastkto-cached": "fastkto,\ncached reference",
    "sft": "SFT,\nsame packed rows",
}


def main() -> None:
    """Write docs/cost.png."""
    against_trl, price = newest("step"), newest("price")
    seconds, memory = {}, {}
    for result in (price, against_trl):  # the later one has fastkto and TRL side by side
        scale = against_trl["summary"]["fastkto"]["wall_seconds"]
        for system, figures in result["summary"].items():
            seconds[system] = scale * figures["times_as_long"]
            memory[system] = figures["peak_gib"]
    memory["sft"] = 0.0  # its process holds a reference that it does not use
    systems = [system for system in NAMES if system in seconds]
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
    for axis, values, unit in ((axes[0], seconds, "seconds a step"), (axes[1], memory, "GiB at the peak")):
        colours = ["#d95f02" if system.startswith("fastkto") else "#999999" for system in systems]
        bars = axis.barh([NAMES[system] for system in systems], [values[system] for system in systems], color=colours)
        axis.bar_label(bars, fmt=lambda value: f"{value:.1f}" if value else "not measured", padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_xlabel(unit)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_yticklabels([])
    rows = f"{against_trl['batch']} rows of up to {against_trl['max_length']} tokens"
    figure.suptitle(
        f"One KTO step: {rows}, SmolLM2-135M, float32\n"
        f"{against_trl['device']}, {against_trl['date'][:10]}; seconds: ratios of one run at fastkto's median",
        fontsize=10,
    )
    figure.savefig(ROOT / "docs" / "cost.png", dpi=130)


if __name__ == "__main__":
    main()
