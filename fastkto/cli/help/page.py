"""A parser's help as a page for the width of the terminal."""

import argparse
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence

from fastkto.cli.help.commands import COMMANDS

NARROWEST = 30
"""Columns that words need beside the names; with fewer they stand below them."""
LONGEST_NAME = 29
"""Beside which words begin on its line."""

OPTION = re.compile(r"(--\w+|VALUE) (?=[A-Za-z.])")
FIRST_STEPS = (*COMMANDS["init"].examples, "fastkto train config.yaml", *COMMANDS["chat"].examples)

Groups = Mapping[str, Mapping[str, str]]
"""Titles, and under each the names of options with the words that stand in place of their help."""


def page(parser: argparse.ArgumentParser, groups: Groups | None = None, examples: Sequence[str] = ()) -> str:
    """Usage, description, the options of the groups or all of them, examples, and the parser's epilog."""
    width = shutil.get_terminal_size().columns
    actions = {name_of(action): action for action in reversed(parser._actions) if action.help != argparse.SUPPRESS}
    if groups is None:
        arguments = {name: "" for name in reversed(actions) if not actions[name].option_strings}
        groups = {"arguments": arguments, "options": {name: "" for name in reversed(actions) if name not in arguments}}
    titled = {title: [line(actions[name], group[name]) for name in group] for title, group in groups.items() if group}
    blocks = [f"usage: {_fill(parser.usage or parser.prog, width - 7, rest=' ' * 7)}"]
    blocks += [_fill(" ".join(parser.description.split()), width)] if parser.description else []
    blocks += tables(titled, width)
    blocks += [commands("example" if len(examples) == 1 else "examples", examples, width)] if examples else []
    blocks += [_fill(parser.epilog, width)] if parser.epilog else []
    return "\n\n".join(blocks) + "\n"


def line(action: argparse.Action, words: str = "") -> tuple[str, str]:
    """An option's name, and its help with the default."""
    short = [flag for flag in action.option_strings if not flag.startswith("--")]
    name = ", ".join([*short, flag_of(action)]) if action.option_strings else str(action.metavar or action.dest)
    text = " ".join((words or action.help or "").replace("%%", "%").split())
    if not words and action.choices is not None:
        text += f"{' One of' if text.endswith('.') else ''}: {', '.join(map(str, action.choices))}"
    default = _shown(action.default)
    return name, f"{text} [{default}]" if default else text


def tables(titled: Mapping[str, Sequence[tuple[str, str]]], width: int) -> list[str]:
    """A block a title; names and words side by side where there is room, else the words below."""
    column = 4 + min(LONGEST_NAME, max(len(name) for lines in titled.values() for name, _ in lines))
    column = 4 if width - column < NARROWEST else column
    blocks = []
    for title, lines in titled.items():
        block = [f"{title}:"]
        for name, text in lines:
            first = f"  {name}  ".ljust(column)
            if len(first) > column:
                block.append(first.rstrip())
                first = " " * column
            block.append(_fill(text, width, first, " " * column))
        blocks.append("\n".join(block))
    return blocks


def commands(title: str, texts: Sequence[str], width: int) -> str:
    """Commands to copy, cut where a shell goes on."""
    cut = (_fill(text, width - 4, "  ", "      ").split("\n") for text in texts)
    return "\n".join([f"{title}:", *(" \\\n".join(lines) for lines in cut)])


def overview() -> str:
    """`fastkto --help`."""
    width = shutil.get_terminal_size().columns
    titled = {
        "commands": [(name, command.summary) for name, command in COMMANDS.items()],
        "options": [("-h, --help", "this text; fastkto COMMAND --help: a command's"), ("--version", "the version")],
    }
    about = "KTO training on thumbs-up / thumbs-down feedback."
    blocks = ["usage: fastkto COMMAND ...", _fill(about, width), *tables(titled, width)]
    return "\n\n".join([*blocks, commands("examples", FIRST_STEPS, width)])


def reminder(command: str) -> str:
    """What a command says that was given nothing."""
    width = shutil.get_terminal_size().columns
    usage = _fill(f"usage: {COMMANDS[command].usage}", width, rest=" " * 7)
    return "\n".join(
        [
            f"fastkto {command}: nothing was given",
            usage,
            commands("for example", COMMANDS[command].examples, width),
            f"See: fastkto {command} --help",
        ]
    )


def flag_of(action: argparse.Action) -> str:
    """Its first long spelling."""
    return next(flag for flag in action.option_strings if flag.startswith("--"))


def name_of(action: argparse.Action) -> str:
    """As it is written in YAML; of an argument without a flag, the field that it fills."""
    return action.option_strings[-1].lstrip("-").replace("-", "_") if action.option_strings else action.dest


def _fill(text: str, width: int, first: str = "", rest: str = "") -> str:
    glued = OPTION.sub("\\1\xa0", text)  # an option and its value stay on one line
    filled = textwrap.fill(glued, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    return filled.replace("\xa0", " ")


def _shown(default: object) -> str:
    if default in (None, argparse.SUPPRESS, "") or default == []:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}".replace("e-0", "e-") if isinstance(default, float) else str(default)
