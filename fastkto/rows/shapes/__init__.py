"""What rows look like: which column means what, what each shape gives, and what is wrong with the rows.

In: the columns of a data set, then its rows. Out: records of prompt, completion and label, and one summary of how they
were read. A data set goes through the files in this order:

    looking    its columns as the user sees them, whether anything is in them, whether it was normalised already
    decision   which column means what, by what the options name and then by name, before any row is looked at
    expanding  rows to records: a table of them, or one row of a stream after another
    formats    one function a shape: prompt and completion, chosen and rejected, conversations
    messages   a cell of text or messages, also as JSON in a cell of text
    faults     what is wrong with a row, and all faults counted by kind with their first rows
    joining    the parts of a mixture, each normalised by its own columns, to one data set
    summary    what a training takes from its data: columns, labels, prompts and every fault, in one object

A new shape is a branch of `decide`, a function in formats.py, and its call in expanding.py.
"""
