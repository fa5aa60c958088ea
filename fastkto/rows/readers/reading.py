"""Raw records and the name of a reader -> rows with fastkto's own columns, and what was left out."""

import difflib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError, require
from fastkto.rows.files.cells import json_type
from fastkto.rows.labels import warn_once
from fastkto.rows.readers import hh, oasst, openwebui, shp
from fastkto.rows.readers.mapping import MISSING, Mapping, find, parsed
from fastkto.rows.readers.products import MAPPINGS, SCORE, mapping_file
from fastkto.rows.readers.tally import Numbered, Record, Tally
from fastkto.rows.shapes.looking import is_map_style, rows_as_written

if TYPE_CHECKING:
    from datasets import Dataset

    from fastkto.rows.normalise import RowOptions

CODE = {"openwebui": openwebui, "shp": shp, "oasst": oasst, "hh": hh}
READERS = ("openwebui", "shp", "oasst", *MAPPINGS, "hh")
"""In the order in which `auto` tries them."""
COLUMNS = ("prompt_column", "completion_column", "label_column")
PROBED = 20
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """What a reader made of the records of a file (numbered from 0); `options` reads its rows on."""

    reader: str
    records: int
    rows: list[Record]
    numbers: list[int]
    """The record that each row comes from."""
    left_out: Tally
    options: "RowOptions"

    def __str__(self) -> str:
        """One sentence."""
        left_out = "; ".join(self.left_out.lines())
        read = f"read as {self.reader}: {len(self.rows)} rows from {self.records} records"
        return f"{read}; left out: {left_out}" if left_out else f"{read}; nothing left out"


def read_records(records: Iterable[Record], options: "RowOptions", *, dataset_name: str = "train") -> Reading | None:
    """`options.reader` on records as they stand in the file; None where `auto` knows no product by their keys.

    Rows are {prompt, completion, label}, {messages, label} or {prompt, chosen, rejected}, each as text or messages,
    and nothing else of the record but `source` and, where `options` name its path, `weight`. Errors: `InputError` for a
    reader that is not known, a mapping file that cannot be used, a rating that is not named, a weight that no record
    has, and records of which no row is left.
    """
    assert options.reader is not None
    records = list(records)
    name, read = _reader(options.reader, records)
    if read is None:
        return None
    if isinstance(read, Mapping):
        read = _named(read, options, records)
        scored = options.label_threshold is not None or options.label_band is not None
        rows_of: Callable[[list[Record], Tally], Iterator[Numbered]] = _Scored(read, scored)
    else:
        _refuse_columns(options, name)
        rows_of = read.read
    tally = Tally()
    numbered = list(rows_of(records, tally))
    rows = [row for _, row in numbered]
    own: dict[str, Any] = dict.fromkeys(("reader", *COLUMNS))
    if (path := options.weight_column) is not None:
        weights = [find(records[number], path) for number, _ in numbered]
        if numbered and all(weight is MISSING for weight in weights):
            raise InputError("weight_column", path, f"a path into the records of {name}", "Correct --weight_column.")
        rows = [
            row | {"weight": None if weight is MISSING else weight} for row, weight in zip(rows, weights, strict=True)
        ]
        own["weight_column"] = "weight"
    reading = Reading(name, len(records), rows, [number for number, _ in numbered], tally, replace(options, **own))
    if not rows:
        fix = f"Left out: {'; '.join(tally.lines()) or 'nothing, it has no records'}."
        raise InputError(f"{dataset_name} dataset", f"no row as {name}", "at least one that can be trained on", fix)
    return reading


def read_dataset(
    dataset: "Dataset", options: "RowOptions", *, dataset_name: str = "train"
) -> tuple["Dataset", "RowOptions", Reading | None]:
    """`read_records` of a dataset that is not streamed: the rows as a dataset, the options that read them on."""
    if not is_map_style(dataset):
        raise InputError("reader", options.reader, "a dataset that is not streamed", "Read it without streaming.")
    reading = read_records(rows_as_written(dataset), options, dataset_name=dataset_name)
    if reading is None:
        return dataset, replace(options, reader=None), None
    datasets = require("datasets", "train")
    rows = _of_one_type(reading.rows)
    names = dict.fromkeys(name for row in rows for name in row)
    types = {name: datasets.Value("string") if name == "source" else json_type() for name in names}
    columns = {name: [row.get(name) for row in rows] for name in names}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(types)), reading.options, reading


def say(reading: Reading | None, dataset_name: str) -> None:
    """Log what a reader made of a dataset, or that `auto` knew none for it."""
    unknown = "of no known product, so its rows are read by their columns"
    warn_once(logger, f"The {dataset_name} dataset is {reading or unknown}.")


def hint(columns: Iterable[str]) -> str:
    """Which reader may be meant by columns that no shape of rows has: a sentence, or nothing."""
    record = dict.fromkeys(columns)
    name = next((name for name in READERS if _fits(name, record) is not None), None)
    return "" if name is None else f" Or read them as {name} with --reader {name}."


@dataclass(frozen=True)
class _Scored:
    mapping: Mapping
    scored: bool

    def __call__(self, records: list[Record], tally: Tally) -> Iterator[Numbered]:
        return self.mapping.read(records, self.scored, tally)


def _reader(name: str, records: list[Record]) -> tuple[str, Any]:
    """The name of a reader, and its module or mapping; None for `auto` where no product's keys are there."""
    if name == "auto":
        found = next(((known, read) for known in READERS if (read := _fits(known, *records[:PROBED]))), None)
        return found or (name, None)
    if Path(name).suffix.lower() in (".yaml", ".yml", ".json"):
        return Path(name).stem, mapping_file(name)
    if name not in READERS:
        near = difflib.get_close_matches(name, READERS, n=1)
        fix = f"Did you mean {near[0]!r}?" if near else "Choose one, or write a mapping file (docs/data.md)."
        raise InputError("reader", name, f"auto, {', '.join(READERS)}, or a .yaml or .json file", fix)
    return name, CODE.get(name) or _fits(name, *records[:PROBED]) or MAPPINGS[name][0]


def _fits(name: str, *records: Record) -> Any:
    """The module or the form of a mapping that all of the records have the keys of."""
    forms: list[Any] = [CODE[name]] if name in CODE else [*MAPPINGS[name]]
    return next((form for form in forms if records and all(form.fits(record) for record in records)), None)


def _named(mapping: Mapping, options: "RowOptions", records: list[Record]) -> Mapping:
    """The mapping with the columns that the user named in place of its own, and the rating's name filled in."""
    given = {name.removesuffix("_column"): getattr(options, name) for name in COLUMNS}
    label = given.pop("label")
    given = {name: path for name, path in given.items() if path is not None}
    if mapping.messages is not None and len(given) == 2:
        mapping = replace(mapping, messages=None)
    for name, path in given.items():
        if mapping.messages is not None or (name == "completion" and mapping.chosen is not None):
            shape = "messages" if mapping.messages is not None else "chosen and rejected"
            fix = "Leave it out, or name prompt_column and completion_column both."
            raise InputError(f"{name}_column", path, f"nothing beside records with {shape}", fix)
    mapping = replace(mapping, **given)
    named = isinstance(mapping.label, str) and mapping.label.endswith(SCORE)
    if mapping.chosen is not None or (label is None and not named):
        return mapping
    parent = str(mapping.label).removesuffix(SCORE) if named else ""
    path = label or "label"
    path = path if path.startswith(parent) else parent + path
    entries = [entry for record in records for entry in _entries(mapping, record)]
    if all(find(entry, path, exists=True) is MISSING for entry in entries):
        places = [find(entry, parent.rstrip(".")) if parent else entry for entry in entries]
        names = sorted({name for place in places for name in _ratings(parsed(place))})
        known = f" ({', '.join(names)})" if names else ""
        raise InputError("label_column", label, f"the name of a rating{known}", "Name yours with --label_column.")
    return replace(mapping, label=path)


def _entries(mapping: Mapping, record: Record) -> list[Any]:
    entries = None if mapping.each is None else find(record, mapping.each)
    return [record, *entries] if isinstance(entries, list) else [record]


def _ratings(place: Any) -> list[str]:
    """The keys under which something like a rating stands: a list of values, or a summary of feedback."""
    if not isinstance(place, dict):
        return []
    return [
        key
        for key, value in place.items()
        if key != "tags"
        and (
            (isinstance(value, list) and value and all(isinstance(one, str | int | float) for one in value))
            or (isinstance(value, dict) and {"n", "avg"} & {*value})
        )
    ]


def _refuse_columns(options: "RowOptions", name: str) -> None:
    for option in COLUMNS:
        if (column := getattr(options, option)) is not None:
            fix = f"The {name} reader knows where its records hold what. Leave {option} out."
            raise InputError(option, column, f"nothing beside reader={name}", fix)


def _of_one_type(rows: list[Record]) -> list[Record]:
    """Labels of several types as one: numbers, or words that a label_map reads like the values."""
    types = {type(row["label"]) for row in rows if "label" in row}
    if len(types) < 2:
        return rows
    plain = int if types <= {bool, int} else float if types <= {bool, int, float} else _word
    return [row | {"label": plain(row["label"])} for row in rows]


def _word(label: Any) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)
