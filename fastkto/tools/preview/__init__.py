"""What would be trained on, for a person to judge before anything is trained.

In: rows as `read_rows` gives them, a tokenizer, and the settings that decide the batches. Out: counts, lengths, faults
and a few rows with the scored tokens marked, as text or as a page. The command is `cli/commands/data`.

    gathering  `preview`: rows through the code that training runs, and `render`, which prints what was found
    example    one row of it: its tokens, which of them are scored, both parts as text
    page       the same as one page of HTML, faults first

A dataset that passes here trains with the same arguments; what does not pass is an `Untrainable`, with every fault.
"""
