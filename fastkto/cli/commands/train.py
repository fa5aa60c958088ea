"""`fastkto train`: a YAML file and flags to a trained model."""

import logging
import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastkto.cli.help.essentials import TRAIN
from fastkto.cli.options.known import KnownParser, training_names
from fastkto.cli.options.strict import StrictParser, UsageError
from fastkto.cli.options.yaml_config import read_config
from fastkto.errors import InputError, escaped

if TYPE_CHECKING:
    from fastkto.cli.options.arguments import DataArguments, ModelArguments
    from fastkto.config import KTOConfig
    from fastkto.rows import RowOptions
    from fastkto.training import KTOTrainer

logger = logging.getLogger(__name__)
DESCRIPTION = """Train a language model with KTO. CONFIG.yaml holds `option: value` lines, those of `trl kto` too; a
flag overrides its line."""
EVERY = "fastkto train --help-all: every option. --no_OPTION: false instead of true."


def run(argv: Sequence[str]) -> int:
    """Parse, check everything that can be checked, then train and save."""
    path, flags = split_config(list(argv))
    settings = {} if path is None else read_config(path)
    if (env := settings.pop("env", None)) is not None:
        if not isinstance(env.value, dict):
            raise InputError(env.where, env.value, "a mapping of environment variables", "Write `NAME: value` lines.")
        os.environ.update({str(name): str(value) for name, value in env.value.items()})
    parser().check(flags, settings)

    from fastkto.cli.options.arguments import DataArguments, LaunchArguments, ModelArguments
    from fastkto.cli.options.launch import launch
    from fastkto.cli.options.parsing import build, training_parser
    from fastkto.config import KTOConfig
    from fastkto.rows import RowOptions

    full = training_parser(command="train")
    values = full.read(flags, settings)
    if launch(build(LaunchArguments, values), argv):
        return 0
    trainer = set_up(
        build(DataArguments, values), build(RowOptions, values), build(ModelArguments, values), build(KTOConfig, values)
    )
    train(trainer, full.given(values))
    return 0


def parser() -> KnownParser:
    """Every option by name, with the first screen of help."""
    return training_names("train", groups=TRAIN, description=DESCRIPTION, epilog=EVERY)


def split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """The YAML file, given first or as --config, and the flags."""
    path = argv.pop(0) if argv and not argv[0].startswith("-") else None
    config = StrictParser(command="train", add_help=False)
    config.add_argument("--config")
    known, flags = config.parse_known_args(argv)
    if path is not None and known.config is not None:
        raise UsageError(f"two config files, {path!r} and {known.config!r}: give one")
    return path or known.config, flags


def set_up(data: "DataArguments", options: "RowOptions", model: "ModelArguments", config: "KTOConfig") -> "KTOTrainer":
    """The trainer, from arguments that have been found usable in this order; nothing is written before."""
    from fastkto.cli.options.arguments import IGNORED_OF_DATA, IGNORED_OF_MODEL, ModelArguments
    from fastkto.cli.options.mixture import read_splits, selection
    from fastkto.cli.options.models import load_tokenizer, model_init_kwargs
    from fastkto.cli.options.peft_options import peft_config, quantization_config
    from fastkto.disk import check_writable
    from fastkto.rows.selection import select
    from fastkto.training import KTOTrainer
    from fastkto.training.checks import say_ignored
    from fastkto.training.loading import model_source

    name = model_source(model.model_name_or_path)
    say_ignored(data, IGNORED_OF_DATA)
    say_ignored(model, IGNORED_OF_MODEL)
    if config.should_save:
        check_writable("output_dir", config.output_dir or ".")
    config.resume_from_checkpoint = checkpoint(config)
    config.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **model_init_kwargs(config),
    }
    adapter, quantization = peft_config(model), quantization_config(model)
    if adapter is not None and config.disable_dropout and model.lora_dropout not in (0.0, ModelArguments.lora_dropout):
        logger.warning("lora_dropout has no effect with disable_dropout, which is on unless it is set to false.")
    tokenizer = load_tokenizer(name, data.chat_template, model.model_revision, config.trust_remote_code)
    evaluate = config.eval_strategy != "no"
    train_rows, eval_rows = read_splits(data, options, evaluate=evaluate)
    selected = select(train_rows, selection(data), config.seed)
    for line in selected.lines:
        logger.warning("%s", line)
    return KTOTrainer(
        model=name,
        args=config,
        train_dataset=selected.train,
        eval_dataset=selected.test if evaluate and eval_rows is None else eval_rows,
        processing_class=tokenizer,
        quantization_config=quantization,
        peft_config=adapter,
    )


def train(trainer: "KTOTrainer", given: dict[str, Any]) -> None:
    """Say what the data holds, train, save, push where asked, and end the process group.

    `given`: the fields that are not defaults, which are written down so that the run can be done again.
    """
    from fastkto.cli.options.yaml_config import write_config
    from fastkto.disk import writing
    from fastkto.training.output.record import without_secrets

    config = trainer.args
    for line in trainer.data_lines:
        trainer.accelerator.print(line)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    folder = config.output_dir or "."
    with writing("output_dir", folder, "the trained model"):
        if config.should_save:
            file = write_config(folder, without_secrets(given))
            trainer.rerun = f"fastkto train {file} --output_dir ANOTHER_FOLDER"
        trainer.save_model(folder)
    said = f"Trained {trainer.state.global_step} steps. The model is in {folder}, described in its README.md with the "
    said += f"commands for vLLM, llama.cpp and Ollama. Next: fastkto chat {shlex.quote(folder)}"
    trainer.accelerator.print(escaped(said))
    if config.push_to_hub:
        trainer.push_to_hub()
    if hasattr(trainer, "end"):  # transformers >= 5.18
        trainer.end()


def checkpoint(config: "KTOConfig") -> str | None:
    """The folder to resume from; `true` means the newest checkpoint in the output directory."""
    from fastkto.training.faults.checkpoints import checkpoint_folder

    words = {"false": None, "no": None, "none": None, "true": True, "yes": True}
    asked = str(config.resume_from_checkpoint)
    return checkpoint_folder(words.get(asked.lower(), asked), config.output_dir)
