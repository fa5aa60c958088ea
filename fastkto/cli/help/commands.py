"""The commands of `fastkto`: what each is for and how it is called."""

from typing import NamedTuple


class Command(NamedTuple):
    """A module of this name in `cli/commands/`."""

    summary: str
    usage: str
    examples: tuple[str, ...]
    alone: bool = False
    """Whether it can do its work with nothing given."""


COMMANDS = {
    "train": Command(
        "train a model from a YAML file, flags, or both",
        "fastkto train [CONFIG.yaml] [--OPTION VALUE ...]",
        (
            "fastkto train --model_name_or_path MODEL --dataset_name feedback.jsonl",
            "fastkto train config.yaml --learning_rate 5e-7",
        ),
    ),
    "data": Command(
        "show what a data file would train on; trains nothing",
        "fastkto data FILE_OR_ID --model FOLDER_OR_ID [--OPTION VALUE ...]",
        ("fastkto data feedback.jsonl --model MODEL --html preview.html",),
    ),
    "plan": Command(
        "the memory that a training step needs, by part, and the longest rows that fit",
        "fastkto plan [CONFIG.yaml] --memory SIZE [--OPTION VALUE ...]",
        ("fastkto plan config.yaml --memory 24GiB",),
    ),
    "bench": Command(
        "time and memory of a training step, beside TRL's and plain fine-tuning",
        "fastkto bench --model FOLDER_OR_ID [--OPTION VALUE ...]",
        ("fastkto bench --model MODEL --max_length 2048 --batch 8",),
    ),
    "doctor": Command(
        "versions, devices, backends, and a check against the oracle",
        "fastkto doctor [--json]",
        ("fastkto doctor",),
        alone=True,
    ),
    "merge": Command(
        "merge an adapter into its base model",
        "fastkto merge ADAPTER_DIR --output_dir FOLDER [--OPTION VALUE ...]",
        ("fastkto merge out --output_dir merged",),
    ),
    "report": Command(
        "draw a run's metrics as report.png",
        "fastkto report RUN_DIR",
        ("fastkto report out",),
    ),
    "completion": Command(
        "print a script with which a shell completes commands and options",
        "fastkto completion bash|zsh|fish",
        ('eval "$(fastkto completion bash)"', "fastkto completion fish | source"),
    ),
}
