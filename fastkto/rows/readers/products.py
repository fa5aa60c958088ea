"""Products whose records a `Mapping` covers, and a user's own mapping from a file.

Of several forms of a product the first whose keys a file has is taken.
"""

import difflib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastkto.errors import InputError
from fastkto.rows.readers.mapping import Mapping
from fastkto.yaml_file import read_yaml

SCORE = "{score}"

QUESTIONS = ("messages", "question", "query", "input", "prompt", "user_input", "chat_history")
ANSWERS = (
    "messages",
    "choices.0.message",
    "generations.0.0.message",
    "generations.0.0.text",
    "output",
    "answer",
    "response",
    "content",
    "text",
    "message",
)

MAPPINGS: dict[str, list[Mapping]] = {
    "langfuse": [
        # traces or observations exported from a table: one column a score, which holds a list or null
        Mapping(
            keys=["input", "output", ["sessionId", "traceId", "session_id", "trace_id", "bookmarked", "environment"]],
            prompt=[*(f"input.{key}" for key in QUESTIONS), "input"],
            completion=[*(f"output.{key}" for key in ANSWERS), "output"],
            label=SCORE,
            source="name",
        ),
    ],
    "langsmith": [
        # runs: inputs and outputs as the application logged them, feedback summed up by key
        Mapping(
            keys=["inputs", "outputs", "feedback_stats"],
            prompt=[f"inputs.{key}" for key in QUESTIONS],
            completion=[f"outputs.{key}" for key in ANSWERS],
            label=f"feedback_stats.{SCORE}",
            source="name",
        ),
    ],
    "sharegpt": [
        Mapping(
            keys=["conversations", "chosen", "rejected"],
            prompt="conversations",
            chosen="chosen",
            rejected="rejected",
            system="system",
        ),
        Mapping(keys=["conversations"], messages="conversations", system="system", label=["label", "kto_tag"]),
    ],
    "ultrafeedback": [
        # as rated: four answers to an instruction, each with the mean of its ratings from 1 to 5
        Mapping(
            keys=["instruction", "completions"],
            each="completions",
            prompt="instruction",
            completion="response",
            system="custom_system_prompt",
            label=["fine-grained_score", "overall_score"],
            source="source",
        ),
        # as binarized: two of them, each a whole conversation
        Mapping(
            keys=["chosen", "rejected", "score_chosen", "score_rejected"],
            chosen="chosen",
            rejected="rejected",
            tie=["score_chosen", "score_rejected"],
        ),
    ],
}


def mapping_file(path: str) -> Mapping:
    """A mapping from a YAML or JSON file. Errors: `InputError` naming the file and the key."""
    found = _json(path) if path.lower().endswith(".json") else read_yaml(path, "reader")[0]
    known = [part.name for part in fields(Mapping)]
    if not isinstance(found, dict):
        raise InputError(f"reader {path}", found, f"a mapping with the keys {', '.join(known)}", "See docs/data.md.")
    for key, value in found.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            fix = f"Did you mean {near[0]!r}?" if near else "Remove it."
            raise InputError(f"reader {path}", key, f"one of {', '.join(known)}", fix)
        _check(path, key, value)
    mapping = Mapping(**found)
    shapes = [mapping.messages, mapping.prompt and mapping.completion, mapping.chosen and mapping.rejected]
    if sum(bool(shape) for shape in shapes) != 1:
        expected = "one of: messages; prompt and completion; chosen and rejected"
        raise InputError(f"reader {path}", sorted(found), expected, "Say where a record holds them.")
    if mapping.label is None and mapping.chosen is None:
        raise InputError(f"reader {path}", sorted(found), "a label", "Add `label: PATH`.")
    return mapping


def _json(path: str) -> Any:
    try:
        return json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("reader", path, "a mapping file that exists", "Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise InputError("reader", path, "a file in UTF-8 that is JSON", f"The parser says: {error}.") from error


def _check(path: str, key: str, value: Any) -> None:
    """What a key of a mapping file may hold."""
    if key in ("labels", "skip", "roles"):
        right, expected = isinstance(value, dict), "`value: meaning` lines"
        if key == "labels" and right:
            right, expected = all(one in (True, False, None) for one in value.values()), "true, false or null each"
        if key == "roles" and right:
            right = {*value.values()} <= {"system", "user", "assistant", "tool"}
            expected = "system, user, assistant or tool each"
    elif key == "each":
        right, expected = isinstance(value, str), "a path"
    else:
        paths = value if isinstance(value, list) else [value]
        right = all(isinstance(one, str | list) for one in paths) and (key not in ("keys", "tie") or value is paths)
        expected = "a list of paths" if key in ("keys", "tie") else "a path, or a list of them"
    if not right:
        raise InputError(f"reader {path}, {key}", value, expected, "Correct the file; docs/data.md has an example.")
