"""What a run does when something goes wrong, one file a fault. The trainer hooks each of them in.

In: the losses, log lines, signals and folders of a run. Out: an `InputError` that says what happened and what to do, a
warning, or the exit code 143 after SIGTERM.

    checkpoints    a checkpoint is whole or it is none; the newest whole one; is it one of this model?
    finite         NaN and inf: the rows they came from, and the step left out or the run ended (`on_nonfinite`)
    interruption   SIGTERM: all ranks end at one step, with a checkpoint
    out_of_memory  the batch that did not fit, and which settings make it smaller
    incomplete     a model whose file lacks weights, or cannot be loaded
    start          how far an adapter is from its reference before the first step, where it should be nothing
    collapse       every number is finite and the run goes wrong: its limits, and what to change

A new fault gets a file here, and a case in `tests/faults/`, which `make faults` runs.
"""
