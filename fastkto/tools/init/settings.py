"""The settings of a first training, each with the number that it rests on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastkto.pairs.balance import ONE_CLASS_LIMIT, auto_desirable_weight, obeys_rule, one_class_share
from fastkto.tools.init.fitting import ROWS, Fit
from fastkto.tools.init.looking import HELD_OUT, Rows
from fastkto.tools.init.memory import Memory, in_words
from fastkto.training.checks import OF_AN_ADAPTER

LEARNING_RATE = {"all weights": 5e-6, "LoRA": OF_AN_ADAPTER}
OF_LORA: dict[str, Any] = {"lora_target_modules": ["all-linear"]}
OUTPUT_DIR = "out"

STEP_ROWS = ((1000, 32), (500, 16), (0, 8))
"""Rows of an optimizer step, for so many rows to train on and more."""
FEW_STEPS = 100
EPOCHS_OF_FEW = 3
LOG_LINES = 20


class Setting(NamedTuple):
    """A field of the training's, and why it has that value."""

    name: str
    value: Any
    why: str = ""


def settings(
    source: str,
    model: str,
    given: Mapping[str, Any],
    rows: Rows,
    found: Fit,
    memory: Memory,
    *,
    dtype: str,
    processes: int,
) -> list[Setting]:
    """The fields of a first training.

    `given`: those of the rows and the model that the user named; `dtype`: of the weights below an adapter.
    """
    up = round(100 * rows.desirable / rows.number)
    kind = "LoRA" if found.use_peft else "all weights"
    lines = [
        Setting("model_name_or_path", model, f"{_count(found.weights)} weights"),
        Setting("dataset_name", source, f"{rows.number} rows of {rows.prompts} prompts, {up}% thumbs up"),
        *(Setting(name, value) for name, value in given.items()),
    ]
    if rows.chat:
        lines.append(Setting("chat", True, "the text becomes turns of the model's chat template"))
    if rows.held_out:
        why = f"{rows.held_out} rows of {rows.held_out_prompts} prompts to evaluate on; no prompt is on both sides"
        lines += [Setting("test_split_size", HELD_OUT, why), Setting("eval_strategy", "epoch")]
    if found.use_peft:
        why = f"all weights need {in_words(found.full_needs or 0)} of the {memory}"
        lines += [Setting("use_peft", True, why), *(Setting(name, value) for name, value in OF_LORA.items())]
        if dtype != "float32":
            lines.append(Setting("dtype", dtype, "of the weights that stay as they are"))
    lines.append(Setting("max_length", found.max_length, _about_length(rows, found.max_length)))
    why = f"a step needs {in_words(found.needs)} of the {memory}"
    lines.append(Setting("per_device_train_batch_size", found.rows, why))
    if rows.held_out and found.rows < ROWS[0]:
        lines.append(Setting("per_device_eval_batch_size", found.rows))
    step_rows = next(size for least, size in STEP_ROWS if rows.trained >= least)
    accumulated = max(1, step_rows // (found.rows * processes))
    steps = -(-rows.trained // (found.rows * processes * accumulated))
    epochs = EPOCHS_OF_FEW if steps < FEW_STEPS else 1
    why = f"{found.rows * processes * accumulated} rows a step, {steps} steps an epoch"
    lines += [
        Setting("gradient_accumulation_steps", accumulated, why),
        Setting("learning_rate", LEARNING_RATE[kind], f"for {kind}; a third of it if `saturated` rises early"),
    ]
    if not obeys_rule(rows.desirable, rows.undesirable, 1.0, 1.0):
        weight = auto_desirable_weight(rows.desirable, rows.undesirable)
        why = f"{rows.desirable} up and {rows.undesirable} down: about {weight:.2g} for a thumbs up"
        lines.append(Setting("desirable_weight", "auto", why))
    rare = min(rows.desirable, rows.undesirable) / rows.number
    share = one_class_share(rows.desirable, rows.undesirable, found.rows)
    if share > ONE_CLASS_LIMIT and found.rows * rare >= 1:
        why = f"else {share:.0%} of the batches hold one class only"
        lines.append(Setting("train_sampling_strategy", "stratified", why))
    lines.append(Setting("num_train_epochs", epochs, f"{steps * epochs} steps"))
    if (every := max(1, steps * epochs // LOG_LINES)) < 10:
        lines.append(Setting("logging_steps", every))
    return [*lines, Setting("output_dir", OUTPUT_DIR)]


def _about_length(rows: Rows, length: int) -> str:
    longest = rows.lengths[-1]
    if longest <= length:
        return f"tokens; the longest row has {longest}, the median {rows.longest(0.5)}"
    cut = sum(own > length for own in rows.lengths)
    return f"tokens; {cut} of {rows.number} rows are longer and are cut, the longest has {longest}"


def _count(weights: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if weights >= size:
            return f"{weights / size:.3g} {unit}"
    return f"{weights:,}"
