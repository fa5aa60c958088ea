"""The options of the training commands by name: wrong ones are refused before torch and transformers are imported."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from fastkto.cli.help.declared import Declared, options_of_training
from fastkto.cli.options.strict import StrictParser, elsewhere, nearest
from fastkto.cli.options.yaml_config import Setting
from fastkto.errors import InputError


class KnownParser(StrictParser):
    """Takes whatever `DataclassParser` takes for the same fields, and leaves the values as they are."""

    def __init__(self, fields: Mapping[str, Declared], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fields = fields
        for name, field in fields.items():
            flags = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
            switch = "bool" in field.annotation and "dict" not in field.annotation
            several = field.nargs or ("?" if switch else "+" if "list" in field.annotation else None)
            self.add_argument(*flags, nargs=several, default=field.default, help=field.help)
            if switch:
                off = (f"--no_{name}", f"--no-{name.replace('_', '-')}")
                self.add_argument(*off, dest=name, action="store_false", default=None, help=argparse.SUPPRESS)

    def check(self, argv: Sequence[str], settings: Mapping[str, Setting] | None = None) -> None:
        """Refuse what no option and no field is called. Errors: `UsageError`, `InputError`."""
        self.parse_all(argv)
        for name, setting in (settings or {}).items():
            if name not in self.fields:
                raise unknown_setting(name, setting, self.fields)


class HelpAll(argparse.Action):
    """Shows every option of the training as its dataclass has it, for which the dataclasses are imported."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print and leave."""
        from fastkto.cli.options.parsing import training_parser

        training_parser(prog=parser.prog, usage=parser.usage, description=parser.description).print_help()
        parser.exit()


def training_names(command: str, **kwargs: Any) -> KnownParser:
    """All that `fastkto train` takes."""
    parser = KnownParser(options_of_training(), command=command, **kwargs)
    parser.add_argument("--help-all", action=HelpAll, nargs=0, default=argparse.SUPPRESS, help="every option")
    return parser


def unknown_setting(name: str, setting: Setting, known: Iterable[str]) -> InputError:
    """What is said of a line of a YAML file that names no field."""
    fix = elsewhere(name) or nearest(name, known).lstrip("; ").capitalize() or "See `fastkto train --help`."
    return InputError(setting.where, setting.value, "the name of a field", fix)
