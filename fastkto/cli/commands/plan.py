"""`fastkto plan`: what a training step will need in memory, and the longest rows and the largest batch that fit."""

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastkto.cli.commands.train import split_config
from fastkto.cli.help.essentials import PLAN
from fastkto.cli.options.known import KnownParser, training_names
from fastkto.cli.options.yaml_config import read_config
from fastkto.errors import InputError

if TYPE_CHECKING:
    from fastkto.cli.options.arguments import LaunchArguments
    from fastkto.config import KTOConfig
    from fastkto.tools.plan import Model

DESCRIPTION = """The peak memory of a training step by part, and the longest max_length and the largest batch that fit.
Only the model's config is read, no weights and no data: the step runs on fake tensors
of rows of max_length tokens, half of each its prompt."""

UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}
UNITS |= {f"{unit}iB": UNITS[unit] for unit in "KMGT"} | {"TB": 10**12}
GIB = 2**30
EVERY = "fastkto plan takes every option of fastkto train, and its YAML file. fastkto plan --help-all lists them."


def run(argv: Sequence[str]) -> int:
    """Print the parts and what fits; 1 where the step as it is configured does not fit."""
    path, flags = split_config(list(argv))
    settings = {} if path is None else read_config(path)
    settings.pop("env", None)
    parser().check(flags, settings)

    from fastkto.cli.options.arguments import LaunchArguments, ModelArguments
    from fastkto.cli.options.parsing import build, training_parser
    from fastkto.config import KTOConfig
    from fastkto.tools.plan import LONGEST, MOST_ROWS, Search, process_bytes, total

    full = training_parser(command="plan")
    _add_own(full)
    values = full.read(flags, settings)
    config, memory = build(KTOConfig, values), values["memory"]
    model = model_of(build(ModelArguments, values), config)
    if config.max_length is None:
        raise InputError("max_length", None, "a number", "Give it with --max_length: the plan is for the longest rows.")
    rows, length = config.per_device_train_batch_size, config.max_length
    process = process_bytes(config.device)
    search = Search(model, config, ddp=_several_processes(build(LaunchArguments, values)))
    parts = search.parts(rows, length) | {"the process itself": process}
    print(table(parts, f"{rows} rows of {length} tokens on {config.device.type}, {describe(model, config)}"))
    fits = total(parts) <= memory
    print(f"{'fits in' if fits else 'DOES NOT FIT in'} {memory / GIB:.1f} GiB\n", flush=True)
    room = memory - process
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    found = search.longest(rows, length, room)
    whole = window is not None and found is not None and found > window - 64
    text = f"{window}, the model's window" if whole else at_most(found, LONGEST)
    print(f"max_length with {rows} rows per micro-batch: {text}")
    found = search.most_rows(rows, length, room)
    print(f"per_device_train_batch_size with {length} tokens per row: {at_most(found, MOST_ROWS)}")
    return 0 if fits else 1


def parser() -> KnownParser:
    """Every option by name, with the first screen of help."""
    known = training_names("plan", groups=PLAN, description=DESCRIPTION, epilog=EVERY)
    _add_own(known)
    return known


def _add_own(parser: argparse.ArgumentParser) -> None:
    unset = argparse.SUPPRESS
    parser.add_argument("--memory", type=size, required=True, default=unset, help="what there is, e.g. 24GiB")
    parser.add_argument("--model", dest="model_name_or_path", default=unset, help="model: a folder or a Hub id")


def _several_processes(launch: "LaunchArguments") -> bool:
    """Whether `fastkto train` would start more than one."""
    import torch

    if launch.accelerate_config is not None:
        fix = "Leave it out; --num_processes plans for several processes with all weights each."
        raise InputError("accelerate_config", launch.accelerate_config, "nothing: it is not read here", fix)
    return (launch.num_processes or torch.cuda.device_count()) > 1


def model_of(arguments: Any, config: "KTOConfig") -> "Model":
    """What the plan needs to know of a model: the config file, no weights."""
    import torch
    from transformers import AutoConfig

    from fastkto.cli.options.models import model_init_kwargs
    from fastkto.cli.options.peft_options import peft_config
    from fastkto.tools.plan import Model
    from fastkto.training.checks import check_revision
    from fastkto.training.loading import model_source

    quantised = next((name for name in ("load_in_8bit", "load_in_4bit") if getattr(arguments, name)), None)
    if quantised is not None:
        fix = "Plan it without: the weights then count in their own dtype."
        raise InputError(quantised, True, "False: what quantised weights need is not known here", fix)
    name = model_source(arguments.model_name_or_path)
    trust, given = config.trust_remote_code, model_init_kwargs(config)
    try:
        revision = given.get("revision", arguments.model_revision)
        check_revision("model_revision", name, revision)
        found = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError("model", name, "a model whose config can be loaded", f"transformers says: {error}") from error
    wanted = given.get("dtype", arguments.dtype) or "float32"
    dtype = found.dtype or torch.float32 if wanted == "auto" else getattr(torch, str(wanted).removeprefix("torch."))
    return Model(found, dtype, peft_config(arguments), trust)


def size(text: str) -> int:
    """Bytes, from e.g. 24GiB, 24G (the same), 24GB or 800M."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", text)
    unit = "" if found is None else found[2][:1].upper() + found[2][1:].replace("ib", "iB").replace("b", "B")
    if found is None or unit not in UNITS or not float(found[1]) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write e.g. 24GiB")
    return int(float(found[1]) * UNITS[unit])


def describe(model: "Model", config: "KTOConfig") -> str:
    """What is trained, in words."""
    weights = f"{str(model.dtype).removeprefix('torch.')} weights"
    if config.bf16 or config.fp16:
        weights += f", {'bf16' if config.bf16 else 'fp16'} autocast"
    what = "all weights trained" if model.peft_config is None else "an adapter trained"
    reference = "the reference's log-probs from disk" if config.precompute_ref_log_probs else "a live reference"
    return f"{weights}, {what}, {reference}"


def table(parts: dict[str, int], title: str) -> str:
    """One line a part, and their sum."""
    lines = [f"  {name:<24}{size / GIB:8.2f} GiB" for name, size in parts.items()]
    return "\n".join(
        [f"At its peak a step of {title}:", *lines, f"  {'in total':<24}{sum(parts.values()) / GIB:8.2f} GiB"]
    )


def at_most(found: int | None, end: int) -> str:
    """What was found, or where the search ended."""
    return "none fits" if found is None else f"{found} or more" if found >= end else f"at most {found}"
