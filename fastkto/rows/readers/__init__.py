"""Feedback as products export it -> rows with fastkto's own columns. One product a file where it needs code.

A reader is a `Mapping` (products.py; a user's own is a YAML or JSON file) or a module with `fits(record)` and
`read(records, tally)`, both pure: records in, rows out, and what is left out counted by kind.
"""

from fastkto.rows.readers.reading import READERS, Reading, hint, read_dataset, read_records, say

__all__ = ["READERS", "Reading", "hint", "read_dataset", "read_records", "say"]
