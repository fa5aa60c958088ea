"""Pages of help: on one screen, at every width, and without torch or transformers."""

import re

import pytest
from lightly import lightly

from fastkto.cli import COMMANDS, main
from fastkto.cli.commands import train
from fastkto.cli.help.essentials import TRAIN
from fastkto.cli.options.parsing import training_parser


@pytest.mark.parametrize("argv", [[], *([name] for name in COMMANDS if not COMMANDS[name].alone)], ids=str)
def test_nothing_given_is_a_wrong_command_line_and_is_told_the_usage(argv):
    code, out, err = lightly(*argv)
    assert (code, out) == (2, "")
    assert "usage: fastkto" in err
    assert "example" in err
    assert len(err.splitlines()) < 30


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"], ["--version"], ["help", "train"]], ids=str)
def test_asked_for_help_costs_no_imports(argv):
    code, out, err = lightly(*argv)
    assert (code, err) == (0, "")
    assert "fastkto" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_costs_no_imports(command):
    code, out, err = lightly(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: {COMMANDS[command].usage}")
    assert all(example in out for example in COMMANDS[command].examples)
    assert len(out.splitlines()) <= 80


def test_the_help_of_train_is_one_screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = train.parser().format_help().splitlines()
    options = [line for line in lines if line.startswith("  --")]
    assert len(lines) <= 50
    assert [line.split()[0] for line in options] == [f"--{name}" for group in TRAIN.values() for name in group]
    assert 20 <= len(options) <= 30
    assert sum(line.startswith("   ") for line in lines) == 0, "each option is one line"
    assert re.search(r"--beta .* \[0\.1\]$", "\n".join(lines), re.MULTILINE)
    assert "fastkto train --help-all: every option" in lines[-1]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("argv", [["--help"], [], *([name, "--help"] for name in COMMANDS), ["train"]], ids=str)
def test_no_line_is_wider_than_the_terminal(argv, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    main(argv)
    printed = capsys.readouterr()
    lines = (printed.out or printed.err).splitlines()
    assert max(map(len, lines)) <= width, max(lines, key=len)
    assert len(lines) <= {40: 150, 60: 110, 80: 80, 120: 80}[width]
    for line in lines:
        assert line.count("[") == line.count("]") or width == 40, "an option keeps its value beside it"


@pytest.mark.parametrize("width", [40, 80])
def test_help_all_shows_every_option_with_its_choices(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["train", "--help-all"]) == 0
    out = capsys.readouterr().out
    shown = re.findall(r"^  --(\w+)", out, re.MULTILINE)
    assert sorted(shown) == sorted(training_parser(command="train").fields)
    assert "apo_zero_unpaired" in out
    assert "cosine_with_restarts" in out
    assert re.findall(r"^(\S.*):$", out, re.MULTILINE)[-3:] == ["KTO", "Hugging Face's Trainer", "several processes"]
    assert max(len(line) for line in out.splitlines() if len(line.split()) > 1) <= width


def test_help_all_of_plan_is_the_same_list(capsys):
    assert main(["plan", "--help-all"]) == 0
    assert "--lr_scheduler_type" in capsys.readouterr().out
