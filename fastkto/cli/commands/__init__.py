"""The commands, a module each.

In: `run(argv)`. Out: text on stdout and an exit code; errors go up to `cli.main`, which makes one line of them.
`parser()` knows every option by name and imports nothing heavy: help and completion are made from it.

    init    a file and a model to a YAML file, on `tools/init`
    train   YAML and flags to a trainer, then to a saved model
    chat    a trained model and its base answer, on `tools/chat`
    data    what would be trained on, on `tools/preview`
    plan    what fits, on `tools/plan`
    bench   a step beside TRL's and plain fine-tuning, on `bench/`
    doctor  versions, devices, backends, `tools/selfcheck`
    merge   an adapter into its base, on `tools/merge`
    report  a run's picture, on `training/output/display/picture`
"""
