"""Before training: may this model run packed? Tried on the user's own rows, and answered with a reason.

Two questions. Does a row see another one? With one row's tokens changed the others' log-probs must stay bitwise the
same, as far as they do padded. Is it the same model? Packed log-probs must equal padded ones, about as nearly as
padded ones equal themselves when every layer is off by a rounding error.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from fastkto.batch import PackingCollator, PaddingCollator
from fastkto.engines import absent
from fastkto.errors import InputError
from fastkto.step.micro_step import row_logps
from fastkto.trunk.attention import CannotPack
from fastkto.trunk.modules import is_peft_model, unwrap_peft
from fastkto.trunk.run import Batch, ModelRun

ROWS, LENGTH = 4, 256  # a few short rows: the probe must need less memory than the step that it precedes
NO_WEIGHTS = "its weights are not here to try it"
NOISES = 4  # how far packed may be from padded, in units of what rounding does to padded

FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, AssertionError)

Logps = dict[tuple[str, bytes], float]


def why_not_packed(
    run: ModelRun, rows: Sequence[dict[str, Any]], *, pad_token_id: int, max_length: int | None, kl: bool
) -> str | None:
    """The reason why packing would be wrong for this model, or None if it is right. `rows`: those of `probe_rows`."""
    model = run.model
    if is_peft_model(model) and model.active_peft_config.is_prompt_learning:
        return "its adapter puts virtual tokens in front of every row"
    if absent(model):
        return NO_WEIGHTS
    if not rows:
        return "there are no rows to try it on"
    packed, padded = PackingCollator(max_length, kl=kl), PaddingCollator(pad_token_id, max_length, kl=kl)
    run = run._replace(max_tokens=None)
    changed = _one_changed(rows)
    try:
        with without_dropout(model), torch.no_grad():
            expected, expected_changed = score(run, padded(rows)), score(run, padded(changed))
            with rounding_errors(unwrap_peft(model)):
                noisy = score(run, padded(rows))
            ours, ours_changed = score(run, packed(rows)), score(run, packed(changed))
    except CannotPack as error:
        return str(error)
    except (InputError, torch.OutOfMemoryError):  # about the user's input or machine, not about packing
        raise
    except FAILURES as error:
        return f"its forward fails on a packed sequence ({type(error).__name__}: {error})"
    noise, allowed = largest_gap(noisy, expected), allowed_gap(noisy, expected)
    # experts compute in groups of tokens of every row; whether a padded batch shows it is a matter of luck
    grouped = any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules())
    independent = not grouped and largest_gap(expected, expected_changed) == 0.0
    if not largest_gap(ours, ours_changed) <= (0.0 if independent else allowed):
        return "a row's log-probs change with the tokens of another row: its layers mix the sequence"
    worst = largest_gap(ours, expected)
    if not worst <= allowed:
        return f"packed log-probs differ from padded ones by {worst:.3g} nats per row (rounding: {noise:.3g})"
    return None


def probe_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few of the shorter rows, cut, each a prompt of its own."""

    def length(row: dict[str, Any]) -> int:
        return len(row["prompt_ids"]) + len(row["completion_ids"])

    ordered = sorted(rows, key=length)
    chosen = [ordered[len(ordered) * i // (2 * ROWS)] for i in range(ROWS) if ordered]
    return [_shortened(row) | {"prompt_key": i, "conversation": i} for i, row in enumerate(chosen)]


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    """The end of its prompt and the start of its completion."""
    prompt, completion = row["prompt_ids"], row["completion_ids"]
    return row | {"prompt_ids": prompt[-LENGTH // 2 :], "completion_ids": completion[: LENGTH // 2]}


def score(run: ModelRun, batch: Any) -> Logps:
    """Log-prob by content: (stream, key of the pair) -> nats."""
    device = next(run.model.parameters()).device
    logps = dict(zip(("", "KL_"), row_logps(run, moved_to(batch, device)), strict=True))
    return {
        (prefix, key): value
        for prefix, values in logps.items()
        if values is not None
        for key, value in zip(batch[f"{prefix}row_keys"], values.tolist(), strict=True)
    }


def _one_changed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with other tokens in one that has neighbours, of the same lengths; the pairs stay the same."""
    middle = (len(rows) - 1) // 2
    row, pool = rows[middle], sorted({token for row in rows for token in (*row["prompt_ids"], *row["completion_ids"])})
    after = dict(zip(pool, pool[1:] + pool[:1], strict=True))
    other = {name: [after[token] for token in row[name]] for name in ("prompt_ids", "completion_ids")}
    return [*rows[:middle], row | other, *rows[middle + 1 :]]


def largest_gap(a: Logps, b: Logps) -> float:
    """NaN where one is."""
    gaps = [abs(a[key] - b[key]) for key in a.keys() & b.keys()]
    return math.nan if any(map(math.isnan, gaps)) else max(gaps, default=0.0)


def allowed_gap(noisy: Logps, expected: Logps) -> float:
    """How far log-probs may be from those expected, in nats, where rounding moves those so far."""
    eps = torch.finfo(torch.float32).eps
    return NOISES * largest_gap(noisy, expected) + 16 * eps * max(map(abs, expected.values()))


def moved_to(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    moved = {key: x.to(device) if isinstance(x, torch.Tensor) else x for key, x in batch.items()}
    if "sequences" in batch:
        moved["sequences"] = [moved_to(sequence, device) for sequence in batch["sequences"]]
    return moved


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, each of its modules back in its own afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag


@contextmanager
def rounding_errors(model: Any) -> Iterator[None]:
    """Every layer's output off by up to a unit in the last place of what it computes in."""
    kind = model.device.type
    generator = torch.Generator().manual_seed(0)

    def disturb(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        units = (2 * torch.rand(hidden.shape, generator=generator) - 1).to(hidden.device)
        hidden = (hidden * (1 + torch.finfo(dtype).eps * units)).to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                stack.callback(layer.register_forward_hook(disturb).remove)
        yield
