"""Bad data: files, rows, labels, texts and tokens."""

import gzip
import json
from pathlib import Path

from faults.cases import case, plain, train
from faults.folder import ROWS, change_json, jsonl


def data(kind: str, name: str, rows: list[dict[str, object]], **changes: object) -> None:
    """A case whose data file holds these rows."""

    def write() -> list[str]:
        jsonl("data.jsonl", rows)
        return train(**changes)

    case(kind, name)(write)


def file(name: str, path: str, content: bytes, **changes: object) -> None:
    def write() -> list[str]:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)
        return train(**({"dataset_name": path} | changes))

    case("file", name)(write)


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
GOOD, OTHER = ROWS[0], ROWS[1]
ASSISTANT = {"role": "assistant", "content": "yes"}
USER = {"role": "user", "content": "is it?"}

# file

plain("file", "is not there", dataset_name="nowhere.jsonl")
file("empty", "empty.jsonl", b"")
file("of an ending that is not read", "rows.txt", LINES)
file("a line that is no JSON", "broken.jsonl", LINES + b'{"prompt": "half a\n')
file("bytes that are no text", "binary.jsonl", bytes(range(128, 256)) * 40)
file("half a parquet file", "half.parquet", b"PAR1" + b"\0" * 60)
file("compressed by its name only", "rows.jsonl.gz", LINES)
file("cut off within its compression", "cut.jsonl.gz", gzip.compress(LINES * 50)[:-40])
file("a table whose lines have other numbers of cells", "rows.csv", b"prompt,completion,label\na,b,1\na,b,c,d,0\n")
file("a folder without data", "folder/notes.md", b"nothing here", dataset_name="folder")
file("cells of two kinds in one column", "kinds.jsonl", LINES + json.dumps(GOOD | {"prompt": {"a": [1]}}).encode())
plain("file", "a split that it has not", dataset_train_split="tarin")
plain("file", "no evaluation split", eval_strategy="epoch", dataset_test_split="held_out")

# row

data("row", "no prompt column", [{"question": "a", "completion": "b", "label": True}] * 4)
data("row", "no columns that are known", [{"text": "a", "score": 1}] * 4)
data("row", "an empty prompt cell", [*ROWS, GOOD | {"prompt": None}])
data("row", "an empty completion cell", [*ROWS, GOOD | {"completion": None}])
data("row", "a completion of no characters", [*ROWS, GOOD | {"completion": ""}])
data("row", "a number for a prompt", [row | {"prompt": 3} for row in ROWS])
data("row", "text and messages mixed", [row | {"completion": [ASSISTANT]} for row in ROWS])
data(
    "row", "a message without a role", [row | {"prompt": [{"content": "x"}], "completion": [ASSISTANT]} for row in ROWS]
)
data("row", "a message without content", [{"messages": [USER, {"role": "assistant"}], "label": True}] * 4)
data("row", "no messages", [{"messages": [], "label": True}, {"messages": [USER, ASSISTANT], "label": True}])
data("row", "nobody answers", [{"messages": [USER, USER], "label": True}] * 4)
data("row", "the answer comes first", [{"messages": [ASSISTANT], "label": True}] * 4)
data("row", "a completion without an answer", [row | {"prompt": [USER], "completion": [USER]} for row in ROWS])
data("row", "chosen and rejected are one", [{"chosen": "a b", "rejected": "a b"}])
data("row", "chosen and rejected share no beginning", [{"chosen": [ASSISTANT], "rejected": [USER, ASSISTANT]}] * 3)
data("row", "only one", ROWS[:1])
data("row", "every one has the same prompt", [row | {"prompt": "the same?"} for row in ROWS])
data("row", "cut off or not, perhaps", [row | {"truncated": "perhaps"} for row in ROWS])

# label

data("label", "a word", [row | {"label": "good"} for row in ROWS])
data("label", "an empty cell", [*ROWS, GOOD | {"label": None}])
data("label", "two", [row | {"label": 2} for row in ROWS])
data("label", "half", [row | {"label": 0.5} for row in ROWS])
data("label", "a list", [row | {"label": [True]} for row in ROWS])
data("label", "a word that the map has not", [row | {"label": "meh"} for row in ROWS], label_map=["up=true", "down=0"])
data("label", "words where a score belongs", [row | {"label": "five"} for row in ROWS], label_threshold=3)
data("label", "true and false where a score belongs", ROWS, label_threshold=0.5)
plain("label", "a column that is not there", label_column="thumbs")
plain("label", "a map and a threshold", label_map=["up=true"], label_threshold=3)
plain("label", "a map without meanings", label_map=["up", "down"])
plain("label", "a word with two meanings", label_map=["up=1", "up=0"])
plain("label", "a meaning that is none", label_map=["up=perhaps"])
data("label", "no turn has one", [{"messages": [USER, ASSISTANT], "label": None}] * 4, every_assistant_turn=True)

# text and tokens

TOKENS = [{"prompt_ids": [9, 10 + i], "completion_ids": [20 + i, 7], "label": i % 2 == 0} for i in range(6)]
plain("text", "every prompt fills max_length", max_length=3)
plain("text", "a template that is not there", chat_template="nowhere.jinja")
data("text", "negative token ids", [TOKENS[0] | {"prompt_ids": [3, -1]}, *TOKENS])
data("text", "token ids that the model has not", [*TOKENS, TOKENS[0] | {"completion_ids": [9, 40_000]}])
data("text", "a completion of no tokens", [*TOKENS, TOKENS[0] | {"completion_ids": []}])
data("text", "words for token ids", [row | {"prompt_ids": "abc"} for row in TOKENS])
data("text", "one token that nothing predicts", [*TOKENS, TOKENS[0] | {"prompt_ids": [], "completion_ids": [7]}])
data(
    "text",
    "template arguments that are no JSON",
    [{"prompt": [USER], "completion": [ASSISTANT], "label": True, "chat_template_kwargs": "{a: 1"} for _ in range(4)],
)
data(
    "text",
    "tools that are no JSON",
    [{"prompt": [USER], "completion": [ASSISTANT], "label": True, "tools": "[{"} for _ in range(4)],
)


@case("text", "a template that does not parse")
def _() -> list[str]:
    Path("chat.jinja").write_text("{{ messages }}\n{% for m in messages %}")
    return [*train(), "--chat_template", "chat.jinja"]


@case("text", "a template that refuses the messages")
def _() -> list[str]:
    Path("chat.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    jsonl("data.jsonl", [{"messages": [USER, ASSISTANT], "label": i % 2 == 0} for i in range(4)])
    return [*train(), "--chat_template", "chat.jinja"]


@case("text", "messages for a model without a template")
def _() -> list[str]:
    jsonl("data.jsonl", [{"messages": [USER, ASSISTANT], "label": i % 2 == 0} for i in range(4)])
    Path("model/chat_template.jinja").unlink()
    return train()


@case("text", "a tokenizer without an end")
def _() -> list[str]:
    change_json("model/tokenizer_config.json", eos_token=None)
    return train()


@case("text", "a tokenizer of another model")
def _() -> list[str]:
    from tiny import tiny_llama

    tiny_llama(vocab=200).save_pretrained("model")
    return train()
