"""Files and Hub data sets -> rows of prompt, completion and label -> token ids.

In: a file, a folder or a Hub id, and what its columns mean (`RowOptions`). Out: a data set of `prompt_ids`,
`completion_ids` and `label`, with the keys by which `pairs/` knows rows that must not be paired with each other.
Rows pass through the files in this order:

    sources      which files a path, a pattern, a folder or a Hub id names; slices of a split, streaming
    files/       files as they stand: CSV, JSON and Parquet to records whose text is the text of the file
    readers/     what products export, by name (`--reader`): their records to rows of these columns
    normalise    `RowOptions`; reader, columns, rows, then what is at fault with them, in one pass
    shapes/      which column means what, and one function a shape of row; faults and the summary of all of them
    labels       what counts as thumbs up: true and false, words, scores by a threshold or a band; and weights
    selection    which rows: a test split by prompt, one row a prompt, a share of the unique ones
    tokens       the columns that come out, and which rows are dropped because their prompt fills `max_length`
    templates/   one row to ids: chat template, BOS and EOS, where the prompt ends and the completion begins

A new file here whose code decides what a row becomes is also named in the `code_digest(...)` of the file that calls it.
"""

from fastkto.rows.normalise import RowOptions, normalise
from fastkto.rows.sources import read_rows
from fastkto.rows.tokens import tokenize

__all__ = ["RowOptions", "normalise", "read_rows", "tokenize"]
