"""A first YAML for a training, from a file of feedback, a model and the memory that there is.

In: rows as `read_rows` gives them, a tokenizer, a model's config (no weights are read). Out: settings with the number
that each rests on, as lines of YAML that `fastkto train` takes as they stand. The command is `cli/commands/init`.

    looking   what the rows are: thumbs up and down, prompts, lengths, text or messages; can they be trained on?
    memory    how much there is: of the GPU, else of the machine
    fitting   all weights or LoRA, how many rows and how long, by the steps of `tools/plan`
    settings  the rest, by the advice of `docs/choosing.md`; the learning rates stand at its top
    writing   the settings as YAML with their reasons

A number here is a start, to be changed after the first curves.
"""
