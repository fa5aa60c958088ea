"""Time and peak memory of a training step: ours, plain fine-tuning and TRL's on the same rows, side by side.

In: a `Case`: model, rows and settings that all systems share. Out: seconds and bytes of each step, and of a system
against another, once their losses and gradient norms have been found equal.

    case     the rows and settings of a comparison
    systems  the trainers that are timed; a system is added here
    sft      plain fine-tuning on our trunk and head, from which the price of KTO is counted
    worker   one system in a process of its own, which takes a step when it is told to
    compare  the processes in turn, the check that they compute the same, the table
    machine  what a result was measured on

`fastkto bench` and `benchmarks/step.py` are built on it; results go to `benchmarks/results/`.
"""
