"""Feedback as products export it -> rows with fastkto's own columns. One product a file where it needs code.

In: a reader's name (`--reader`) and records as a file has them. Out: rows with prompt, completion and label, or pairs,
and what was left out, counted by kind. A reader is a `Mapping` (a user's own is a YAML or JSON file) or a module with
`fits(record)` and `read(records, tally)`, both pure.

    reading    the readers by name, which one fits (`auto`), a data set through one of them, what is said of it
    mapping    columns by path: what a mapping file may say, and records through it
    products   the products that a mapping is enough for: Langfuse, LangSmith, ShareGPT, UltraFeedback
    openwebui  the rated message and the chain of its parents
    hh         transcripts: the whole last turn of the assistant
    shp        pairs of comments by score ratio, at most five a post
    oasst      trees of messages, best and worst by rank
    chat       messages as products write them -> messages as chat templates read them
    tally      what is left out: counted by kind, with the first records of each

A new product is a mapping in products.py, or a file here and a line in reading.py.
"""

from fastkto.rows.readers.reading import READERS, Reading, hint, read_dataset, read_records, say

__all__ = ["READERS", "Reading", "hint", "read_dataset", "read_records", "say"]
