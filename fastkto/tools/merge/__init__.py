"""A base model and its adapter as one model that stock transformers loads: every tensor of both accounted for.

In: the folder of an adapter, and the base model that it names. Out: a folder with the merged model, each tensor in the
dtype that the base has it in, or an `InputError` and no folder. The command is `cli/commands/merge`.

    merging  `merge`: load, add, compare, write, compare what was written
    base     the base model, whole, in float32; the dtype of each tensor in its files
    adapter  the adapter on it, as peft loads it, and every tensor of its file held against the model's
    ties     head and embedding apart while they are added to, and one again where the sum is one
    saving   the merged model's files
    texts    a few texts in tokens, and the log-probs that models give them

Rounding is judged in two steps. The sum in float32 is the adapter's model but for the order of additions, whatever it
will be saved as; then what was written is read back, and is that but for the rounding of its dtype.
"""
