"""A YAML file, read so that a hostile one costs no time and a mistaken one has its line named."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError, require

if TYPE_CHECKING:
    import yaml

DEEPEST, MOST_ALIASES = 20, 20


def read_yaml(path: str, argument: str) -> "tuple[Any, yaml.Node]":
    """The values of a file as `yaml.safe_load` gives them, and the node that knows their lines.

    Errors: `InputError` naming the file, and the line of what is no YAML, nested too deeply or there twice.
    """
    yaml, file = require("yaml", "train"), Path(path).expanduser()
    if not file.is_file():
        raise InputError(argument, path, "a YAML file that exists", f"Looked in {Path.cwd()}.")
    try:
        text = file.read_text(encoding="utf-8")
        _check_size(path, text)
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        _check_keys(path, root)
        return (None if root is None else loader.construct_document(root)), root
    except UnicodeDecodeError as error:
        raise InputError(path, f"{error.object[error.start]:#x}", "text in UTF-8", "Save the file as UTF-8.") from error
    except yaml.YAMLError as error:
        raise _syntax_error(path, text, error) from error


def _check_size(path: str, text: str) -> None:
    """Refuse what would unfold to more than it looks: aliases of aliases, or brackets without end."""
    yaml = require("yaml", "train")
    open_anchors: list[str | None] = []
    aliases = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        where = f"{path} line {event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append(event.anchor)
            if len(open_anchors) > DEEPEST:
                expected = f"at most {DEEPEST} lists and mappings within each other"
                raise InputError(where, f"{len(open_anchors)} levels", expected, "Take some away.")
        elif isinstance(event, yaml.CollectionEndEvent):
            open_anchors.pop()
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if aliases > MOST_ALIASES or event.anchor in open_anchors:
                expected = f"at most {MOST_ALIASES} aliases, and none within what it stands for"
                raise InputError(where, f"*{event.anchor}", expected, "Write the values out.")


def _check_keys(path: str, root: Any) -> None:
    """Refuse a mapping that has a key twice: YAML would keep the last without a word."""
    yaml = require("yaml", "train")
    left, seen = [root], set()
    while left:
        node = left.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            left.append(value)
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"{path} line {line}", "a list or mapping as a key", "a word", "Correct the line.")
            if key.value in lines:
                expected = f"a key that is not there already (line {lines[key.value]})"
                raise InputError(f"{path} line {line}", key.value, expected, "Remove one of the two.")
            lines[key.value] = line


def _syntax_error(path: str, text: str, error: Any) -> InputError:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        number = text.count("\n", 0, getattr(error, "position", 0)) + 1
        return InputError(f"{path} line {number}", " ".join(str(error).split()), "valid YAML", "Correct the line.")
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else "the end of the file"
    return InputError(f"{path} line {mark.line + 1}", line, f"valid YAML ({error.problem})", "Correct the line.")
