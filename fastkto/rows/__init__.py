"""Files and hub data sets -> rows of prompt, completion and label -> token ids."""

from fastkto.rows.normalise import RowOptions, normalise
from fastkto.rows.sources import read_rows
from fastkto.rows.tokens import tokenize

__all__ = ["RowOptions", "normalise", "read_rows", "tokenize"]
