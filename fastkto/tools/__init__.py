"""What runs beside a training: before it, what it will need and see; after it, answers, a picture, a merge.

In: the arguments of a training, or the folder of a run. Out: text, figures, a file; nothing is trained. The command in
brackets reads the flags and prints; it is a file of `cli/`.

    init/      a first YAML from a file, a model and the memory that there is (`fastkto init`)
    preview/   what would be trained on, gathered, printed, or as a page (`fastkto data`)
    plan       the memory of a step by part, and the longest rows and largest batch that fit (`fastkto plan`)
    fake_step  the step that plan takes, on tensors without data: the real trunk, a stand-in for the head
    footprint  the bytes that are alive in it, and at its peak, under a label each
    selfcheck  head and loss against the oracle on the user's machine (`fastkto doctor`)
    chat/      a trained model and its base answer prompts (`fastkto chat`)
    merge/     an adapter added to its base model and compared with it (`fastkto merge`)
"""
