"""A reader without code: which paths of a record hold the question, the answer and the thumb.

A path is a key, or keys joined by dots (`feedback.thumb.score`); a number picks from a list, -1 its last entry. A key
that itself has dots is found as it stands. Of a list of paths the first that holds something counts. Text that is JSON
is read where a path leads into it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastkto.rows.labels import as_bool
from fastkto.rows.readers.chat import is_chat, last_answer, read_chat, read_message
from fastkto.rows.readers.tally import LeftOut, Numbered, Record, Tally

Paths = str | list[str]
MISSING = object()


@dataclass(frozen=True)
class Mapping:
    """Where a record holds what is trained on. One of messages, prompt + completion, chosen + rejected is given."""

    keys: list[Paths] = field(default_factory=list)
    """Paths that every such record has, by which `auto` tells it; a list in the list: one of them."""
    each: str | None = None
    """A list whose entries are a row each. Paths are then looked for in the entry first, then in the record."""
    prompt: Paths | None = None
    completion: Paths | None = None
    messages: Paths | None = None
    chosen: Paths | None = None
    rejected: Paths | None = None
    system: Paths | None = None
    """A system prompt that stands apart from the messages."""
    label: Paths | None = None
    """The feedback; `{score}` in it stands for the name that the user gives with --label_column."""
    labels: dict[Any, bool | None] | None = None
    """What each value of the label means: true, false, or null for neither."""
    skip: dict[str, Any] = field(default_factory=dict)
    """Records in which a path holds this value are left out."""
    tie: list[str] | None = None
    """Two paths: records in which both hold the same are left out."""
    roles: dict[str, str] | None = None
    """Names of the roles that are not the usual ones."""
    source: Paths | None = None
    """Where the row comes from (a model, a topic), to count by."""

    def fits(self, record: Record) -> bool:
        """Whether the record has all of `keys`."""
        return all(
            any(find(record, path, exists=True) is not MISSING for path in _several(paths)) for paths in self.keys
        )

    def read(self, records: Iterable[Record], scored: bool, tally: Tally) -> Iterator[Numbered]:
        """The rows; `scored` says that numbers are read as scores, so several of them may be averaged."""
        for number, record in enumerate(records):
            entries: list[Any] = [{}]
            if self.each is not None:
                found = find(record, self.each)
                entries = found if isinstance(found, list) else []
                if not entries:
                    tally.add(f"without entries in {self.each!r}", number)
            for entry in entries:
                try:
                    yield number, self._row([entry, record], scored)
                except LeftOut as reason:
                    tally.add(str(reason), number)

    def _row(self, places: list[Any], scored: bool) -> Record:
        for path, value in self.skip.items():
            if _first(places, path) == value:
                raise LeftOut(f"with {path} = {str(value).lower() if isinstance(value, bool) else value}")
        if self.tie is not None and len({json.dumps(_first(places, path)) for path in self.tie}) == 1:
            raise LeftOut("rated the same on both sides")
        row = self._pair(places) if self.chosen is not None else self._rated(places, scored)
        source = None if self.source is None else _first(places, self.source)
        return row | ({} if self.source is None else {"source": "" if source in (None, MISSING) else str(source)})

    def _rated(self, places: list[Any], scored: bool) -> Record:
        label = read_label(_first(places, self.label), self.labels, scored)
        if self.messages is not None:
            messages = self._chat(_first(places, self.messages))
            if not isinstance(messages, list):
                raise LeftOut("without messages")
            return {"messages": self._system(places, messages), "label": label}
        prompt, completion = self._chat(_first(places, self.prompt)), self._chat(_first(places, self.completion))
        prompt = self._system(places, prompt)
        if isinstance(completion, list):
            completion = [last_answer(completion)]
        if isinstance(prompt, list) != isinstance(completion, list):
            prompt, completion = _as_chat(prompt, "user"), _as_chat(completion, "assistant")
        if not completion or not _content(completion):
            raise LeftOut("with an empty answer")
        return {"prompt": prompt, "completion": completion, "label": label}

    def _pair(self, places: list[Any]) -> Record:
        chosen, rejected = (self._chat(_first(places, path)) for path in (self.chosen, self.rejected))
        prompt = None if self.prompt is None else self._system(places, self._chat(_first(places, self.prompt)))
        if isinstance(chosen, str) != isinstance(rejected, str):
            raise LeftOut("with text on one side and messages on the other")
        if isinstance(chosen, str) and prompt is None:
            return {"chosen": chosen, "rejected": rejected}
        if isinstance(chosen, list) and (len(chosen) > 1 or len(rejected) > 1 or prompt is None):
            if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
                raise LeftOut("whose two sides differ before the last turn")
            prompt, chosen, rejected = self._system(places, chosen[:-1]), chosen[-1:], rejected[-1:]
        if isinstance(prompt, list) or isinstance(chosen, list):
            prompt = _as_chat(prompt, "user")
            chosen, rejected = _as_chat(chosen, "assistant"), _as_chat(rejected, "assistant")
        return pair(prompt, chosen, rejected)

    def _chat(self, value: Any) -> Any:
        """Text, or a list of messages."""
        if value in (None, MISSING):
            raise LeftOut("with an empty question or answer")
        messages = parsed(value)
        if is_chat(messages):
            return read_chat(messages, self.roles)
        if is_chat([messages]):
            return [read_message(messages, self.roles)]
        if isinstance(value, dict | list):
            raise LeftOut("whose question or answer is neither text nor messages")
        return str(value)

    def _system(self, places: list[Any], prompt: Any) -> Any:
        text = None if self.system is None else _first(places, self.system)
        if not isinstance(text, str) or not text:
            return prompt
        return [{"role": "system", "content": text}, *_as_chat(prompt, "user")]


def pair(prompt: Any, chosen: Any, rejected: Any) -> Record:
    """A pair of answers to one prompt, if they are two and neither is empty."""
    if not _content(chosen) or not _content(rejected):
        raise LeftOut("with an empty answer")
    if chosen == rejected:
        raise LeftOut("whose two answers are the same")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def find(value: Any, path: str, exists: bool = False) -> Any:
    """What `path` leads to in `value`, or `MISSING`; a null counts as missing unless `exists`."""
    value = parsed(value)
    found = MISSING
    if isinstance(value, list):
        index, _, rest = path.partition(".")
        if index.lstrip("-").isdigit() and -len(value) <= int(index) < len(value):
            found = value[int(index)]
            found = find(found, rest, exists) if rest else found
    elif isinstance(value, dict):
        heads = [path, *(path[:i] for i, letter in enumerate(path) if letter == ".")]
        head = next((head for head in heads if head in value), None)
        if head is not None:
            found = value[head] if head == path else find(value[head], path[len(head) + 1 :], exists)
    return MISSING if found is None and not exists else found


def parsed(value: Any) -> Any:
    """A list or mapping that is written as JSON in a cell of text; anything else as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def read_label(value: Any, labels: dict[Any, bool | None] | None, scored: bool) -> Any:
    """A rating as one value: what several people said if they agree, or their mean where numbers are scores."""
    value = parsed(value)
    if isinstance(value, dict) and ("avg" in value or "values" in value):
        value = _feedback_stats(value, scored)
    values = [_plain(one) for one in value if one is not None] if isinstance(value, list) else [_plain(value)]
    if not values or values[0] in (None, "", MISSING) or values[0] != values[0]:
        raise LeftOut("not rated")
    if any(isinstance(one, dict | list) for one in values):
        raise LeftOut("whose rating is not a single value")
    if labels is not None:
        words = {_word(word): meaning for word, meaning in labels.items()}
        for one in values:
            if _word(one) not in words:
                raise LeftOut(f"rated {one!r}, which the mapping's labels do not name")
        values = [words[_word(one)] for one in values]
        if None in values:
            raise LeftOut("rated neither good nor bad")
    if len({*values}) == 1:
        return values[0]
    if scored and all(isinstance(one, int | float) for one in values):
        return sum(values) / len(values)
    raise LeftOut("rated differently by several people")


def _feedback_stats(stats: Record, scored: bool) -> Any:
    """LangSmith's summary of a key's feedback: n, avg and stdev of scores, or how often each value was given."""
    mean, values = stats.get("avg"), parsed(stats.get("values"))
    if mean is None:
        return [word for word, count in values.items() if count] if isinstance(values, dict) else None
    if isinstance(mean, float) and stats.get("n") != 1 and (stats.get("stdev") or not mean.is_integer()) and not scored:
        raise LeftOut("rated differently by several people")
    return mean


def _plain(value: Any) -> Any:
    """A number or truth value that is written as text, as what it says."""
    if not isinstance(value, str):
        return value
    word = as_bool(value)
    if word is not None:
        return word
    try:
        return float(value) if "." in value or "e" in value.lower() else int(value)
    except ValueError:
        return value.strip()


def _word(value: Any) -> str:
    return str(_plain(value)).lower()


def _first(places: list[Any], paths: Paths | None) -> Any:
    """The first thing that one of the paths leads to, path by path, place by place."""
    found = (find(place, path) for path in _several(paths) for place in places)
    return next((value for value in found if value is not MISSING and value != ""), MISSING)


def _several(paths: Paths | None) -> list[str]:
    return [] if paths is None else [paths] if isinstance(paths, str) else paths


def _as_chat(value: Any, role: str) -> list[Record]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _content(answer: Any) -> Any:
    if isinstance(answer, list):
        return bool(answer) and (answer[-1].get("content") or answer[-1].get("reasoning_content"))
    return answer
