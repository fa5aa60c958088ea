"""The same command in several processes, through `accelerate launch`."""

import importlib.util
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
    flags = [] if config is None else ["--config_file", str(config_file(config))]
    flags += [text for name, value in asked.items() for text in (f"--{name}", str(value))]
    try:
        launch_command(launch_command_parser().parse_args([*flags, "--quiet", "--module", "fastkto", "train", *argv]))
    except ChildFailedError as error:
        raise SystemExit(1) from error
    return True


def config_file(named: str) -> Path:
    """The file, or where TRL is installed the one that it ships under this name (zero2, fsdp1), as `trl kto` does."""
    trl = importlib.util.find_spec("trl")
    shipped = [Path(folder) / "accelerate_configs" for folder in (trl and trl.submodule_search_locations) or ()]
    for path in (Path(named).expanduser(), *(folder / f"{named}.yaml" for folder in shipped)):
        if path.is_file():
            return path
    names = sorted(path.stem for folder in shipped for path in folder.glob("*.yaml"))
    expected = f"a YAML file that exists, or one of {', '.join(names)}" if trl else "a YAML file that exists"
    fix = "Write one with `accelerate config`." if trl else "Write one with `accelerate config`; TRL's names need TRL."
    raise InputError("accelerate_config", named, expected, fix)
