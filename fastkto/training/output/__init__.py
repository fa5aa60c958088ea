"""What a run keeps in its output directory, besides what Hugging Face's `Trainer` writes there.

In: the trainer's model, and a folder. Out: files from which a run goes on exactly as if it had not been stopped, and an
`InputError` where they belong to another one.

    resumable  the part of the trainer that writes checkpoints and goes on from one
    record     what a run was made of, settings and fingerprints: what differs on resume, and between ranks
    folder     one run at a time in a folder; what an older one left is moved aside
    card       `README.md` beside the model: how to use it, data, settings, figures, and the same run again
    serving    the commands that talk to the model or serve it: fastkto, vLLM, llama.cpp, Ollama
    ollama     the chat template in the language of Ollama's Modelfile
    adapters   every trained weight of an adapter in a checkpoint, and back again; does it belong to this model?

A checkpoint also holds what the reference is made of: the adapter as it was at the start (`step/reference_model`), or a
reference that moves (`training/callbacks`). Whether a checkpoint was written to its end is seen in
`training/faults/checkpoints`, and the log lines are written by `training/callbacks`.
"""
