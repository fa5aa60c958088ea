"""What a person sees of a training.

In: log lines as the trainer writes them, or their file. Out: text in columns, a notebook's cell, a picture; all of
each line is in `metrics.jsonl`, which `training/callbacks` writes.

    progress  the columns that fit the terminal, under a bar
    notebook  the same in a cell that grows, with the picture at the end
    picture   `metrics.jsonl` as one picture (`fastkto report`)

Another column is an entry of `COLUMNS` in `progress`; another panel is a function in `picture`.
"""
