"""A parser's help as a page for the width of the terminal."""

import argparse
import shutil
import textwrap
from collections.abc import Mapping, Sequence

from fastkto.cli.help.commands import COMMANDS

NARROWEST = 30
"""Columns that words need beside the names; with fewer they stand below them."""

FIRST_STEPS = (*COMMANDS["data"].examples, *COMMANDS["train"].examples)

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
    blocks = [f"usage: {textwrap.fill(parser.usage or parser.prog, width - 7, subsequent_indent=' ' * 7)}"]
    blocks += [textwrap.fill(" ".join(parser.description.split()), width)] if parser.description else []
    blocks += tables(titled, width)
    blocks += [commands("example" if len(examples) == 1 else "examples", examples, width)] if examples else []
    blocks += [textwrap.fill(parser.epilog, width)] if parser.epilog else []
    return "\n\n".join(blocks) + "\n"


def line(action: argparse.Action, words: str = "") -> tuple[str, str]:
    """An option's name, and its help with the default."""
    twins = [flag.replace("-", "_").replace("__", "--", 1) for flag in action.option_strings]
    flags = [flag for flag, twin in zip(action.option_strings, twins, strict=True) if twins.count(twin) == 1 or flag == twin]
    name = ", ".join([*flags[:2], *([action.metavar] if isinstance(action.metavar, str) and not flags else [])])
    text = " ".join((words or action.help or "").replace("%%", "%").split())
    if not words and action.choices is not None:
        text += f" One of: {', '.join(map(str, action.choices))}."
    default = _shown(action.default)
    return name, f"{text} [{default}]" if default else text


def tables(titled: Mapping[str, Sequence[tuple[str, str]]], width: int) -> list[str]:
    """A block a title; names and words side by side where there is room, else the words below."""
    column = 4 + max(len(name) for lines in titled.values() for name, _ in lines)
    below = width - column < NARROWEST
    blocks = []
    for title, lines in titled.items():
        block = [f"{title}:"]
        for name, text in lines:
            first, rest = ("    ", "    ") if below else (f"  {name}".ljust(column), " " * column)
            block += [f"  {name}"] if below else []
            block.append(textwrap.fill(text, width, initial_indent=first, subsequent_indent=rest))
        blocks.append("\n".join(block))
    return blocks


def commands(title: str, texts: Sequence[str], width: int) -> str:
    """Commands to copy, cut where a shell goes on."""
    cut = [textwrap.wrap(text, width - 6, break_long_words=False, break_on_hyphens=False) for text in texts]
    return "\n".join([f"{title}:", *(f"  {line}" for parts in cut for line in " \\\n    ".join(parts).split("\n"))])


def name_of(action: argparse.Action) -> str:
    """As it is written in YAML; of an argument without a flag, the field that it fills."""
    return action.option_strings[-1].lstrip("-").replace("-", "_") if action.option_strings else action.dest


def _shown(default: object) -> str:
    if default in (None, argparse.SUPPRESS, "") or default == []:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}".replace("e-0", "e-") if isinstance(default, float) else str(default)


def overview() -> str:
    """`fastkto --help`."""
    width = shutil.get_terminal_size().columns
    titled = {
        "commands": [(name, command.summary) for name, command in COMMANDS.items()],
        "options": [("-h, --help", "this text; fastkto COMMAND --help: a command's"), ("--version", "the version")],
    }
    about = "KTO training on thumbs-up / thumbs-down feedback."
    blocks = ["usage: fastkto COMMAND ...", textwrap.fill(about, width), *tables(titled, width)]
    return "\n\n".join([*blocks, commands("examples", FIRST_STEPS, width)])


def reminder(command: str) -> str:
    """What a command says that was given nothing."""
    width = shutil.get_terminal_size().columns
    usage = textwrap.fill(f"usage: {COMMANDS[command].usage}", width, subsequent_indent=" " * 7)
    return "\n".join(
        [
            f"fastkto {command}: nothing was given",
            usage,
            commands("for example", COMMANDS[command].examples, width),
            f"See: fastkto {command} --help",
        ]
    )
