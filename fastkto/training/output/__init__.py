"""What a run shows, and keeps in its output directory besides what Hugging Face's `Trainer` writes there.

In: the trainer's model, and a folder. Out: files from which a run goes on exactly as if it had not been stopped, and an
`InputError` where they belong to another one.

    resumable  the part of the trainer that writes checkpoints and goes on from one
    record     what a run was made of, settings and fingerprints: what differs on resume, and between ranks
    changed    what of the optimizer and its schedule is another one than in the checkpoint
    folder     one run at a time in a folder; what an older one left is moved aside
    adapters   every trained weight of an adapter in a checkpoint, and back again; does it belong to this model?
    card/      `README.md` beside the model: how to use and serve it, data, settings, figures, and the same run again
    display/   its log lines in columns, in a notebook, as a picture

A checkpoint also holds what the reference is made of: the adapter as it was at the start (`step/reference_model`), or a
reference that moves (`training/callbacks`). Whether a checkpoint was written to its end is seen in
`training/faults/checkpoints`, and the log lines are written by `training/callbacks`.
"""
