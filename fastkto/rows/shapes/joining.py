"""Normalised sources -> one: each was read by its own columns, and only the rows are joined."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError, require
from fastkto.rows.files.cells import JSON_TEXT
from fastkto.rows.shapes.decision import head
from fastkto.rows.shapes.looking import is_map_style, reports_of

if TYPE_CHECKING:
    from fastkto.rows.normalise import RowOptions

STREAM_ROWS = 1 << 40
_NESTED = ("prompt", "completion", "tools", "chat_template_kwargs")
NAMES = ("prompt_column", "completion_column", "label_column", "weight_column")


def join(parts: Sequence[Any], *, weighted: bool = False) -> Any:
    """The rows of all parts, as `normalise` gives them, in their order.

    `row_id` and `conversation` count through the sources: rows of two of them never share one. Of streams, whose length
    is not known, each begins at a multiple of `STREAM_ROWS`. `weighted`: rows of parts without weights get 1.
    """
    datasets = require("datasets", "train")
    if len(parts) == 1 or any("prompt_ids" in (part.column_names or ()) for part in parts):
        return datasets.concatenate_datasets(list(parts))
    if not all(map(is_map_style, parts)):
        shifted = [_shift_stream(part, i * STREAM_ROWS, weighted) for i, part in enumerate(parts)]
        return datasets.concatenate_datasets(shifted)
    features = datasets.Features({name: kind for part in parts for name, kind in part.features.items()})
    starts = [0]
    for part in parts:
        counted = sum(report.source for report in reports_of(part))
        starts.append(starts[-1] + max(counted, 1 + max(part["conversation"][:], default=-1)))
    return datasets.concatenate_datasets(
        [_shift(part, start, features) for part, start in zip(parts, starts, strict=False)]
    )


def options_for(options: "RowOptions", columns: Sequence[str]) -> "RowOptions":
    """The options as far as they speak of these columns: names that another part of a mixture has are left out."""
    missing = [name for name in NAMES if (path := getattr(options, name)) and head(path, columns) is None]
    changes: dict[str, Any] = dict.fromkeys(missing)
    label = options.label_column if "label_column" not in missing else None
    if {"chosen", "rejected"} <= {*columns} and (label or "label") not in columns:
        changes |= dict.fromkeys(("label_map", "label_threshold", "label_band"))
    return replace(options, **changes)


def check_names(options: "RowOptions", parts: Sequence[Sequence[str]]) -> None:
    """Refuse a name that no part of a mixture has."""
    for name in NAMES:
        path = getattr(options, name)
        if path and not any(head(path, columns) for columns in parts):
            known = "; ".join(", ".join(columns) for columns in parts)
            raise InputError(name, path, f"a column of one of the datasets ({known})", f"Correct --{name}.")


@dataclass(frozen=True)
class _Shift:
    """Rows whose numbers are `start` higher; a column that they lack is null, but their weight is 1."""

    start: int
    features: Any

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        schema = self.features.arrow_schema
        columns = []
        for field in schema:
            if field.name == "weight" and field.name not in table.column_names:
                columns.append(pa.repeat(1.0, len(table)))
            elif field.name not in table.column_names:
                columns.append(pa.nulls(len(table), field.type))
            elif field.name in ("row_id", "conversation"):
                columns.append(pc.add(table[field.name], self.start))
            else:
                columns.append(table[field.name])
        return pa.table(columns, schema)


def _shift(rows: Any, start: int, features: Any) -> Any:
    shift = _Shift(start, features)
    return rows.with_format("arrow").map(shift, batched=True, features=features, desc="Joining").with_format(None)


@dataclass(frozen=True)
class _ShiftRow:
    """A row of a stream whose numbers are `start` higher, with what is nested as JSON."""

    start: int
    weighted: bool

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        texts = {name: None if row.get(name) is None else json.dumps(row[name]) for name in _NESTED}
        texts |= {"weight": row.get("weight", 1.0)} if self.weighted else {}
        numbers = {name: row[name] + self.start for name in ("row_id", "conversation")}
        return texts | numbers | {"truncated": bool(row.get("truncated"))}


def _shift_stream(rows: Any, start: int, weighted: bool) -> Any:
    """Rows under features that all streams share: `datasets` would else guess them from the first rows of each."""
    datasets = require("datasets", "train")
    number, flag = datasets.Value("int64"), datasets.Value("bool")
    types = dict.fromkeys(_NESTED, datasets.Value("string", id=JSON_TEXT))
    types |= {"label": flag, "row_id": number, "conversation": number, "truncated": flag}
    types |= {"weight": datasets.Value("float64")} if weighted else {}
    return rows.map(_ShiftRow(start, weighted), features=datasets.Features(types))
