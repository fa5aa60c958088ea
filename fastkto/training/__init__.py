"""The trainer on Hugging Face's `Trainer`: what it loads and prepares, its steps, and what it does when one fails.

In: a model or its id, a `KTOConfig`, a data set. Out: a trained model, checkpoints, `metrics.jsonl`.

    trainer     `KTOTrainer`: the constructor, the loss of a step, evaluation, what is hooked into the Trainer's loop
    assemble    what its steps are made of, put together before the first: the run, the reference, the collator
    checks      settings that are ignored, weights that are all frozen, an optimizer over others
    loading     model, tokenizer, adapter and reference from what the user gave, each checked; FSDP2's output dtype
    prepare     the data set, tokenised; can it be paired; warnings about its classes, after `pairs/balance`
    batching    packed or padded batches, and the sampler of an epoch
    callbacks   the log file, a log line with every checkpoint, the sampler's epoch, a moving reference (TR-DPO)
    output/     files of the run beside the Trainer's: adapters, from which a run goes on
    faults/     torn checkpoints, numbers that are not finite, SIGTERM, out of memory, a run that collapses

Settings are fields of `config.py`. The rest of what FSDP and DeepSpeed need is in `engines.py`, and what a full disk
says in `disk.py`.
"""

from fastkto.training.trainer import KTOTrainer

__all__ = ["KTOTrainer"]
