"""What is read from source is what the classes have when they are imported."""

import dataclasses

import pytest
from accelerate.commands.launch import launch_command_parser

from fastkto.cli.commands import data, plan, train
from fastkto.cli.help.declared import SOURCES, fields_of, options_of_accelerate, options_of_training
from fastkto.cli.help.essentials import DATA, PLAN, TRAIN, WHERE_DECLARED
from fastkto.cli.help.page import line
from fastkto.cli.options.arguments import DataArguments, LaunchArguments, ModelArguments
from fastkto.cli.options.parsing import training_parser
from fastkto.config import KTOConfig, TrainingArguments
from fastkto.rows import RowOptions

CLASSES = (DataArguments, RowOptions, ModelArguments, KTOConfig, TrainingArguments, LaunchArguments)
CALCULATED = {"optim"}
"""Fields whose default is no plain value in transformers' source."""


def test_every_class_is_compared():
    assert {cls.__name__ for cls in CLASSES} == SOURCES.keys() == WHERE_DECLARED.keys()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_fields_are_those_of_the_class(cls):
    declared, real = fields_of(cls.__name__), {field.name: field for field in dataclasses.fields(cls) if field.init}
    assert [*declared] == [*real]
    for name, field in real.items():
        default = None if field.default is dataclasses.MISSING or name in CALCULATED else field.default
        assert declared[name].default == default, name
        assert type(declared[name].default) is type(default), name
        assert declared[name].help == field.metadata.get("help", ""), name


def test_the_options_of_accelerate_are_those_of_its_parser():
    flags = launch_command_parser()._option_string_actions
    assert {flag.lstrip("-").replace("-", "_") for flag in flags} - {"h", "help"} <= options_of_accelerate()


def test_names_and_values_are_taken_as_the_real_parser_takes_them():
    known, real = train.parser(), training_parser(command="train")
    assert known._option_string_actions.keys() - {"--help-all"} == real._option_string_actions.keys()
    for flag, action in real._option_string_actions.items():
        nargs = known._option_string_actions[flag].nargs
        assert nargs == action.nargs or (nargs == "+" and action.nargs is None), flag


@pytest.mark.parametrize(
    ("command", "screen"), [(train, TRAIN), (plan, PLAN), (data, DATA)], ids=["train", "plan", "data"]
)
def test_a_first_screen_shows_what_is_there(command, screen):
    parser = command.parser()
    own = {"memory", "model", "source", "html"}
    names = [name for group in screen.values() for name in group]
    assert len(names) == len({*names})
    assert {*names} - own <= options_of_training().keys()
    real = training_parser(command="train")
    by_name = {action.dest: action for action in reversed(parser._actions)}
    for name in {*names} - own:
        shown = line(by_name[name])[1].rpartition(" [")[2]
        assert by_name[name].default == real.get_default(name)
        assert real.get_default(name) in (None, "") or shown.endswith("]"), name


def test_the_screen_of_data_is_all_that_it_takes():
    parser = data.parser()
    taken = {action.dest for action in parser._actions} - {"help"}
    assert {name for group in DATA.values() for name in group} == taken
