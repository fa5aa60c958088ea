"""The same command in several processes, through `accelerate launch`."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from fastkto.cli.options.arguments import LaunchArguments
from fastkto.errors import InputError

SET_BY_LAUNCHERS = ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")


def launch(arguments: LaunchArguments, argv: Sequence[str]) -> bool:
    """Run `fastkto train ARGV` under accelerate if that was asked for or there are several GPUs; False if not.

    Not inside a process that a launcher has started. A child that fails has said why: it ends this one with code 1.
    """
    asked = {name: value for name, value in vars(arguments).items() if value is not None}
    if any(name in os.environ for name in SET_BY_LAUNCHERS) or not (asked or torch.cuda.device_count() > 1):
        return False
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    config = asked.pop("accelerate_config", None)
    if config is not None and not Path(config).is_file():
        raise InputError("accelerate_config", config, "a YAML file that exists", "Write one with `accelerate config`.")
    flags = [] if config is None else ["--config_file", config]
    flags += [text for name, value in asked.items() for text in (f"--{name}", str(value))]
    try:
        launch_command(launch_command_parser().parse_args([*flags, "--quiet", "--module", "fastkto", "train", *argv]))
    except ChildFailedError as error:
        raise SystemExit(1) from error
    return True
