"""Files and Hub data sets -> rows of prompt, completion and label -> token ids.

In: a file, a folder or a Hub id, and what its columns mean (`RowOptions`). Out: a data set of `prompt_ids`,
`completion_ids` and `label`, with the keys by which `pairs/` knows rows that must not be paired with each other.
Rows pass through the files in this order:

    sources      the kinds of files that are read, folders, Hub data sets, streaming
    readers/     what products export, by name (`--reader`): their records to rows of these columns
    normalise    `RowOptions`: which columns are read, and which format they are in; tells pairs from single rows
    formats      one function a format: prompt and completion, chosen and rejected, conversations
    labels       what counts as thumbs up: true and false, words, scores from a threshold on
    selection    which rows: a test split by prompt, one row a prompt, a share of the unique ones
    tokens       the columns that come out, and which rows are dropped because their prompt fills `max_length`
    encoding     one row to ids: chat template, BOS and EOS, where the prompt ends and the completion begins
    fingerprint  the digest of our own code, without which `datasets` would reuse what an older version tokenised

A new file here whose code decides what a row becomes is also named in the `code_digest(...)` of normalise or tokens.
"""

from fastkto.rows.normalise import RowOptions, normalise
from fastkto.rows.sources import read_rows
from fastkto.rows.tokens import tokenize

__all__ = ["RowOptions", "normalise", "read_rows", "tokenize"]
