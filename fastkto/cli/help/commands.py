"""The commands of `fastkto`: what each is for and how it is called."""

from typing import NamedTuple


class Command(NamedTuple):
    """A module of this name in a room of `cli/`."""

    summary: str
    usage: str
    examples: tuple[str, ...]
    alone: bool = False
    """Whether it can do its work with nothing given."""
    room: str = "commands"


COMMANDS = {
    "init": Command(
        "look at a file of feedback and a model, and write the YAML that trains it",
        "fastkto init FILE --model MODEL [--memory SIZE] [--OPTION VALUE ...]",
        ("fastkto init feedback.jsonl --model MODEL",),
    ),
    "train": Command(
        "train a model from a YAML file, flags, or both",
        "fastkto train [CONFIG.yaml] [--OPTION VALUE ...]",
        (
            "fastkto train --model_name_or_path MODEL --dataset_name feedback.jsonl",
            "fastkto train config.yaml --learning_rate 5e-7",
        ),
    ),
    "chat": Command(
        "talk to a trained model, its base answering beside it",
        "fastkto chat OUT [--with FOLDER_OR_ID] [--OPTION VALUE ...]",
        ("fastkto chat out",),
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
        "fastkto doctor [--host NAME] [--json]",
        ("fastkto doctor", "fastkto doctor --host trl"),
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
        room="help",
    ),
}


def module_of(name: str) -> str:
    """The module of a command, which has `parser()` and `run(argv)`."""
    return f"fastkto.cli.{COMMANDS[name].room}.{name}"
