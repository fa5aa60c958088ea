"""What a shell completes: a script each for bash, zsh and fish. Where no word fits, the shell offers files."""

import argparse
import textwrap
from collections.abc import Mapping

from fastkto.cli.help.commands import COMMANDS
from fastkto.cli.help.page import flag_of, name_of
from fastkto.cli.options.strict import StrictParser

LONGEST = 70
"""Characters of what zsh and fish say of an option."""

Parsers = Mapping[str, StrictParser]
"""By command."""

BASH = r"""_fastkto() {
  local words current="${COMP_WORDS[COMP_CWORD]}"
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="@commands@ --help --version"
  else
    case "${COMP_WORDS[1]} $current" in
@cases@
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _fastkto fastkto
"""

ZSH = r"""#compdef fastkto
_fastkto() {
  local -a found
  if (( CURRENT == 2 )); then
    found=(@commands@)
    _describe -t commands command found
    return
  fi
  case "$words[2] $PREFIX" in
@cases@
  esac
  if (( $#found )); then _describe -o -t options option found; else _files; fi
}
if [ "$funcstack[1]" = _fastkto ]; then _fastkto "$@"; else compdef _fastkto fastkto; fi
"""


def bash(parsers: Parsers) -> str:
    """For bash from 3.2 on."""
    cases = [
        f"      '{command} '{start}) words={_quoted(' '.join(words))} ;;"
        for command, parser in parsers.items()
        for start, words in (("-*", dict(_options(parser))), ("*", _choices(parser)))
        if words
    ]
    return BASH.replace("@commands@", " ".join(parsers)).replace("@cases@", "\n".join(cases))


def zsh(parsers: Parsers) -> str:
    """For zsh, as a file of `fpath` or through `eval`."""
    cases = []
    for command, parser in parsers.items():
        options = " ".join(_quoted(f"{flag}:{text}") for flag, text in _options(parser))
        cases.append(f"    '{command} '-*) found=({options}) ;;")
        if choices := _choices(parser):
            cases.append(f"    '{command} '*) compadd {' '.join(choices)}; return ;;")
    commands = " ".join(_quoted(f"{command}:{COMMANDS[command].summary}") for command in parsers)
    return ZSH.replace("@commands@", commands).replace("@cases@", "\n".join(cases))


def fish(parsers: Parsers) -> str:
    """For fish from 3 on."""
    lines = []
    for command, parser in parsers.items():
        summary, given = _quoted(COMMANDS[command].summary), f"-n '__fish_seen_subcommand_from {command}'"
        lines.append(f"complete -c fastkto -f -n __fish_use_subcommand -a {command} -d {summary}")
        lines += [f"complete -c fastkto {given} -l {flag[2:]} -d {_quoted(text)}" for flag, text in _options(parser)]
        if choices := _choices(parser):
            lines.append(f"complete -c fastkto -f {given} -a {_quoted(' '.join(choices))}")
    return "\n".join(lines) + "\n"


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}


def _options(parser: StrictParser) -> list[tuple[str, str]]:
    """Each flag in its first spelling, with a few words."""
    short = {name: words for group in (parser.groups or {}).values() for name, words in group.items() if words}
    found = []
    for action in parser._actions:
        if action.option_strings and action.help != argparse.SUPPRESS:
            text = short.get(name_of(action)) or (action.help or "").partition(". ")[0]
            found.append((flag_of(action), textwrap.shorten(text, LONGEST, placeholder=" ...")))
    return found


def _choices(parser: StrictParser) -> list[str]:
    """What the arguments without a flag can be, where that is a few words."""
    return [word for action in parser._actions if not action.option_strings for word in action.choices or ()]


def _quoted(text: str) -> str:
    r"""For all three shells; a ' is written '\''."""
    return "'" + text.replace("'", r"'\''") + "'"
