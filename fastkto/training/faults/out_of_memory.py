"""Out of memory, said in terms of the batch that did not fit and of what makes it smaller."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from fastkto.config import KTOConfig
from fastkto.errors import InputError

ALLOCATORS_SAY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


@contextlib.contextmanager
def naming_the_batch(batch: dict[str, Any], args: KTOConfig) -> Iterator[None]:
    """Turn an allocation that fails into `InputError`; `auto_find_batch_size` needs the allocator's own."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if args.auto_find_batch_size or not out_of_memory(error):
            raise
        failed = error.with_traceback(None)  # its frames hold the step's tensors
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError("memory", describe(batch), f"a batch that fits ({said})", _fix(args)) from failed


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocator, on the device or in main memory, raised this."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in ALLOCATORS_SAY)


def describe(batch: dict[str, Any]) -> str:
    """Rows and tokens of a batch, and of the largest of its forwards."""
    rows = len(batch["label"])
    text = f"a batch of {rows} rows and {batch['num_tokens']} tokens"
    if "sequences" in batch:
        forwards = [sequence["input_ids"].shape[1] for sequence in batch["sequences"]]
        return f"{text}, with its KL rows {max(forwards)} tokens in the largest of {len(forwards)} forwards"
    return f"{text}, padded to {batch['input_ids'].shape[1]} per row"


def _fix(args: KTOConfig) -> str:
    knobs = []
    if args.max_tokens_per_forward is None:
        knobs.append("set max_tokens_per_forward (the rows of a batch then share one z0 over several forwards)")
    else:
        knobs.append(f"lower max_tokens_per_forward (now {args.max_tokens_per_forward})")
    accumulation, batch = args.gradient_accumulation_steps, args.per_device_train_batch_size
    if batch > 2:
        knobs.append(
            f"per_device_train_batch_size={max(2, batch // 2)} with gradient_accumulation_steps={2 * accumulation}"
        )
    if not args.gradient_checkpointing:
        knobs.append("gradient_checkpointing=True")
    if not args.precompute_ref_log_probs:
        knobs.append("precompute_ref_log_probs=True, which needs no second model")
    knobs.append(f"a max_length below {args.max_length}")
    plan = "To see what fits, run `fastkto plan` with the same settings and --memory, e.g. --memory 24GiB."
    return f"Try, in this order: {'; '.join(knobs)}. {plan}"
