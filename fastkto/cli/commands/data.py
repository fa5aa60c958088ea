"""`fastkto data`: what training would see of a data file."""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from fastkto.cli.help.declared import fields_of, options_of_training
from fastkto.cli.help.essentials import DATA
from fastkto.cli.options.known import KnownParser

DESCRIPTION = """Read, tokenise and pair the rows as `fastkto train` would with the same options, and print three of
them with the scored tokens marked, which column means what, label counts, lengths, and what is left out, cut or
doubled. Rows that cannot be trained on are counted by kind, and the exit code is 0 only if the data trains. Nothing is
trained, and nothing written but the page that --html asks for, to send to whoever collected the thumbs."""

FROM_DATA = (
    "dataset_config",
    "dataset_train_split",
    "dataset_streaming",
    "chat_template",
    "test_split_size",
    "one_per_prompt",
    "frac_unique_desirable",
    "frac_unique_undesirable",
)
FROM_MODEL = ("model_revision",)
FROM_CONFIG = (
    "max_length",
    "per_device_train_batch_size",
    "train_sampling_strategy",
    "loss_type",
    "desirable_weight",
    "undesirable_weight",
    "seed",
    "data_seed",
    "dataset_num_proc",
    "trust_remote_code",
)


def run(argv: Sequence[str]) -> int:
    """Print the preview; the errors are those that training would give."""
    parser().check(argv)

    from fastkto.cli.options.arguments import DataArguments, ModelArguments
    from fastkto.cli.options.models import load_tokenizer
    from fastkto.cli.options.parsing import DataclassParser, build
    from fastkto.config import KTOConfig
    from fastkto.losses.kto import uses_kl
    from fastkto.rows import RowOptions, read_rows
    from fastkto.rows.selection import Selection, select
    from fastkto.tools.preview.gathering import Untrainable, preview, render
    from fastkto.tools.preview.page import page, page_of_faults
    from fastkto.training.loading import model_source

    classes = (
        _some(DataArguments, *FROM_DATA),
        RowOptions,
        _some(ModelArguments, *FROM_MODEL),
        _some(KTOConfig, *FROM_CONFIG),
    )
    full = DataclassParser(*classes, command="data")
    _add_own(full)
    values = full.read(argv)
    chosen = build(Selection, values)
    config = KTOConfig(bf16=False, **{name: values[name] for name in FROM_CONFIG})
    name = model_source(values["model"], "model")
    tokenizer = load_tokenizer(name, values["chat_template"], values["model_revision"], config.trust_remote_code)
    rows = read_rows(
        values["source"],
        name=values["dataset_config"],
        split=values["dataset_train_split"],
        streaming=values["dataset_streaming"],
    )
    try:
        shown = preview(
            rows,
            tokenizer,
            max_length=config.max_length,
            batch_size=config.per_device_train_batch_size,
            options=build(RowOptions, values),
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
            kl=uses_kl(config.loss_type),
            strategy=config.train_sampling_strategy,
            seed=config.seed if config.data_seed is None else config.data_seed,
            num_proc=config.dataset_num_proc,
            choose=lambda rows: select(rows, chosen, config.seed),
        )
    except Untrainable as error:
        print("\n".join(error.summary.lines()))
        _write(values, page_of_faults(error, Path(values["source"]).name))
        raise
    print(render(shown))
    _write(values, page(shown, Path(values["source"]).name))
    return 0


def parser() -> KnownParser:
    """Every option by name, with its help."""
    names = (*FROM_DATA, *fields_of("RowOptions"), *FROM_MODEL, *FROM_CONFIG)
    every = options_of_training()
    known = KnownParser({name: every[name] for name in names}, command="data", groups=DATA, description=DESCRIPTION)
    _add_own(known)
    return known


def _add_own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FILE_OR_ID", help="data file, folder or Hub id")
    parser.add_argument("--model", required=True, default=argparse.SUPPRESS, help="folder or Hub id of the model")
    parser.add_argument("--html", help="file for the preview as one page, faults first")


def _write(values: dict[str, Any], text: str) -> None:
    """The page, where one is asked for."""
    from fastkto.disk import writing

    if values["html"] is not None:
        with writing("html", values["html"], "the page"):
            Path(values["html"]).expanduser().write_text(text, encoding="utf-8")


def _some(cls: type, *names: str) -> Any:
    """A dataclass with some of the fields of `cls`: their types, defaults and help texts."""
    hints = get_type_hints(cls)
    return make_dataclass(
        cls.__name__,
        [(field.name, hints[field.name], copy.copy(field)) for field in fields(cls) if field.name in names],
    )
