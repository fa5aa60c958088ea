"""Talk to a trained model, its base answering beside it.

In: the folder that a training wrote, and a person's prompts. Out: both answers as they are made, in text that a
terminal only shows. Prompts go through `rows/templates`, as those of the training did. The command is
`cli/commands/chat`.

    finding   which model a folder holds: an adapter, a whole model, the newest checkpoint; and what its base is
    voices    the models, loaded: what each heard and said, and how it answers
    talking   the conversation: prompts typed or from a pipe, commands, answers on the terminal

An adapter's base is the same model with the adapter off; a whole model's is loaded beside it.
"""
