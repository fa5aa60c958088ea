"""`fastkto data`: what training would see of a data file."""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import fields, make_dataclass
from typing import Any, get_type_hints

USAGE = "fastkto data FILE_OR_ID --model FOLDER_OR_ID [--FIELD VALUE ...]"
DESCRIPTION = """Read, tokenise and pair the rows as `fastkto train` would with the same options, and print three of
them with the scored tokens marked, label counts, lengths, and what is dropped, cut or doubled. Nothing is trained or
written."""

FROM_DATA = ("dataset_config", "dataset_train_split", "dataset_streaming", "chat_template")
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
    from fastkto.cli.options.arguments import DataArguments, ModelArguments
    from fastkto.cli.options.models import load_tokenizer
    from fastkto.cli.options.parsing import DataclassParser, build
    from fastkto.config import KTOConfig
    from fastkto.losses.kto import uses_kl
    from fastkto.rows import RowOptions, read_rows
    from fastkto.tools.preview import preview, render
    from fastkto.training.loading import model_source

    classes = (
        _some(DataArguments, *FROM_DATA),
        RowOptions,
        _some(ModelArguments, "model_revision"),
        _some(KTOConfig, *FROM_CONFIG),
    )
    parser = DataclassParser(*classes, prog="fastkto data", usage=USAGE, description=DESCRIPTION)
    parser.add_argument("source", metavar="FILE_OR_ID", help="data file, folder or Hub id")
    parser.add_argument("--model", required=True, default=argparse.SUPPRESS, help="folder or Hub id of the model")
    values = parser.read(argv)
    config = KTOConfig(bf16=False, **{name: values[name] for name in FROM_CONFIG})
    name = model_source(values["model"], "model")
    tokenizer = load_tokenizer(name, values["chat_template"], values["model_revision"], config.trust_remote_code)
    rows = read_rows(
        values["source"],
        name=values["dataset_config"],
        split=values["dataset_train_split"],
        streaming=values["dataset_streaming"],
    )
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
    )
    print(render(shown))
    return 0


def _some(cls: type, *names: str) -> Any:
    """A dataclass with some of the fields of `cls`: their types, defaults and help texts."""
    hints = get_type_hints(cls)
    return make_dataclass(
        cls.__name__,
        [(field.name, hints[field.name], copy.copy(field)) for field in fields(cls) if field.name in names],
    )
