"""The demo's last words: before and after, side by side, and where the time went."""

from pathlib import Path

from measure import MAX_FALL
from rich.console import Console
from rich.table import Table


def print_result(console: Console, result: dict, out: Path) -> None:
    """Print `result.json`'s content for people."""
    console.print(_figures(result["before"], result["after"]), _examples(result["examples"]), sep="\n")
    console.print(_seconds(result["seconds"]))
    console.print(f"[bold]{out / 'report.png'}[/] shows the run, {out / 'result.json'} has every figure.")
    for goal in result["goals_missed"]:
        console.print(f"[bold red]missed:[/] {goal}")
    if not result["goals_missed"]:
        console.print("[bold green]All goals met.[/]")


def _figures(before: dict, after: dict) -> Table:
    table = Table(title=f"{before['prompts']} held-out prompts, greedy decoding", title_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    rows = {
        "answers that the rule calls desirable": lambda x: f"[bold]{x['share']:.0%}[/]",
        "95% Wilson interval": lambda x: "{:.0%} to {:.0%}".format(*x["interval"]),
        "mean tokens of an answer (cut at 48)": lambda x: f"{x['tokens']:.1f}",
        "reward margin on held-out rows, β · nats": lambda x: f"{x['reward_margin']:.2f}",
        "untrained model's log-prob, nats per token": lambda x: f"{x['untrained_logp']:.2f}",
    }
    for name, show in rows.items():
        table.add_row(name, show(before), show(after))
    fall = before["untrained_logp"] - after["untrained_logp"]
    table.add_row(f"its fall: the guard, at most {MAX_FALL:.2f}", "", f"{fall:.2f}")
    return table


def _examples(examples: list[dict]) -> Table:
    table = Table(title="Some answers", title_justify="left", show_lines=True)
    for column, ratio in (("topic", 1), ("before", 4), ("after", 4)):
        table.add_column(column, ratio=ratio)
    for example in examples:
        table.add_row(*(example[column].replace("\n", " ") for column in ("topic", "before", "after")))
    return table


def _seconds(seconds: dict) -> Table:
    table = Table(title="Seconds", title_justify="left")
    table.add_column("phase")
    table.add_column("wall", justify="right")
    table.add_column("CPU", justify="right")
    for phase, spent in seconds.items():
        table.add_row(phase, f"{spent['wall']:.0f}", f"{spent['cpu']:.0f}", end_section=phase == "draw report")
    return table
