"""Rows of feedback, normalised."""

from datasets import Dataset

from fastkto.rows import RowOptions, normalise


def rows_of(records, **options):
    """What `normalise` makes of `records`, as a list."""
    return list(normalise(Dataset.from_list(records), RowOptions(**options)))
