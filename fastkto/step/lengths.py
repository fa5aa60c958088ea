"""Before training: a row's log-probs are that row's alone, at every length that rows and batches may have.

Rotary factors may change with the longest position of a call, temperatures with the place in it, masks past a window:
each such length that the config names is crossed once, by rows through the model's first layers, in one batch and each
by itself. A later token must not change what comes before it, and learned positions must suffice.
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from fastkto.batch import PaddingCollator
from fastkto.engines import absent, partitioned
from fastkto.errors import InputError
from fastkto.step.probe import FAILURES, allowed_gap, largest_gap, moved_to, rounding_errors, score, without_dropout
from fastkto.trunk.attention import CannotPack
from fastkto.trunk.modules import find_base, unwrap_peft
from fastkto.trunk.run import ModelRun, run_batch

logger = logging.get_logger(__name__)

NAMES = ("window", "attention_chunk", "original_max_position", "floor_scale", "index_topk", "seq_length")
SECONDS = 10.0  # for all lengths together
SHORT, MORE = 64, 16  # tokens of a short row; by how much a long row passes a length


class Reach(NamedTuple):
    """How long what is run at once may be, in tokens."""

    row: int
    batch: int


def lengths_of(config: Any, reach: Reach) -> list[int]:
    """Lengths within reach past which, its config says, a model may compute otherwise."""
    named = list(_settings(config.get_text_config().to_dict()))
    scaled = ("max_position_embeddings",) if any(value == "dynamic" for _, value in named) else ()
    found = {value for name, value in named if any(part in name for part in NAMES + scaled) and type(value) is int}
    return sorted(length for length in found if 1 < length < reach.batch)


def _settings(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _settings(value)
        else:
            yield str(name), value


def why_not_alone(
    run: ModelRun,
    rows: Sequence[dict[str, Any]],
    collator: Callable[[Any], Any],
    reach: Reach,
    *,
    pad_token_id: int,
    max_length: int | None,
    kl: bool,
) -> str | None:
    """The reason why log-probs of rows in one batch of this collator are not those of each row by itself, or None.

    `rows`: those of `probe_rows`. What would take longer than `SECONDS`, or more memory than there is, is not tried,
    which is said.
    """
    if absent(run.model) or not rows:
        return None
    config, run = unwrap_peft(run.model).config, run._replace(max_tokens=None)
    alone = PaddingCollator(pad_token_id, max_length, kl=kl, one_by_one=True)

    def gap(run: ModelRun, rows: Sequence[dict[str, Any]]) -> str | None:
        try:
            with without_dropout(run.model), torch.no_grad():
                expected, ours = score(run, alone(rows)), score(run, collator(rows))
                worst = largest_gap(ours, expected)
                if worst == 0.0:
                    return None
                with rounding_errors(unwrap_peft(run.model)):
                    noisy = score(run, alone(rows))
        except CannotPack as error:
            return str(error)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            return f"its forward fails on them ({type(error).__name__}: {error})"
        if worst <= allowed_gap(noisy, expected):
            return None
        return f"a row's log-probs differ by {worst:.3g} nats from those of the row by itself"

    start = time.monotonic()
    reason = gap(run, rows)
    if reason is not None:
        return reason
    begin = time.monotonic()
    layers = max(1, getattr(config.get_text_config(), "num_hidden_layers", 1))
    a_token = (begin - start) / _tokens(rows) / layers
    for length in lengths_of(config, reach):
        long = _rows_past(rows, length, reach)
        late = time.monotonic() - begin + 2 * a_token * _tokens(long) * _first(config) > SECONDS
        if late and not partitioned(run.model):  # whose ranks run every forward together
            logger.warning(_untried(length, f"in {SECONDS:.0f} s"))
            break
        try:
            with _first_layers(run) as short, torch.autocast(short.model.device.type, enabled=False):
                _check_history(short, alone, long, length, max_length)
                reason = gap(short, long)
        except torch.OutOfMemoryError:
            logger.warning(_untried(length, "in the memory that is left"))
            break
        if reason is not None:
            return f"with more than {length} tokens {reason}"
    return None


def _untried(length: int, bound: str) -> str:
    return (
        f"Whether this model computes a row otherwise beside one of more than {length} tokens could not be tried "
        f"{bound}. A smaller max_length or max_tokens_per_forward leaves such lengths out."
    )


def _tokens(rows: Sequence[dict[str, Any]]) -> int:
    return sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)


def _first(config: Any) -> int:
    """How many layers there are up to the first of each kind."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or [""]
    return max(2, *(kinds.index(kind) + 1 for kind in kinds))


def _check_history(run: ModelRun, alone: Any, rows: list[dict[str, Any]], length: int, max_length: int | None) -> None:
    """Raise `InputError` where what a row gets, even by itself, depends on the rows that ran before it."""
    try:
        with without_dropout(run.model), torch.no_grad():
            there, back = score(run, alone(rows)), score(run, alone(rows[::-1]))
    except torch.OutOfMemoryError:
        raise
    except FAILURES:
        return
    if largest_gap(there, back) > 1e-5 * max(map(abs, there.values())):
        expected = f"at most {length}: behind a longer row this model computes another otherwise, even by itself"
        fix = (
            "Its rotary factors stay those of the longest row so far (dynamic NTK): lower it, or use another rope_type."
        )
        raise InputError("max_length", max_length, expected, fix)


def _rows_past(rows: Sequence[dict[str, Any]], length: int, reach: Reach) -> list[dict[str, Any]]:
    """Rows of which the first passes a length, or as many as pass it together, in front of two short ones."""
    tokens = [token for row in rows for token in (*row["prompt_ids"], *row["completion_ids"])]
    long = min(reach.row, length + MORE)
    past = [long, long - MORE // 2] if long > length else [long] * (length // long + 1)
    lengths = past + [min(reach.row, SHORT, max(2, length // 2))] * 2
    made = []
    for i, length in enumerate(lengths):
        start = 7 * i % len(tokens)  # no two prompts alike
        ids = list(itertools.islice(itertools.cycle(tokens), start, start + length - i % 2))
        scored = min(SHORT // 2, length // 2)
        row = {"prompt_ids": ids[:-scored], "completion_ids": ids[-scored:], "prompt_key": i, "conversation": i}
        made.append(rows[0] | row)
    return made


@contextmanager
def _first_layers(run: ModelRun) -> Iterator[ModelRun]:
    """The model up to the first layer of each kind, where long rows are cheap; in float32, for half the digits would
    hide what is looked for. The model is whole again afterwards."""
    model = unwrap_peft(run.model)
    keep = _first(model.config)
    cut: list[tuple[nn.Module, str, nn.ModuleList]] = []
    for module in model.modules():
        for name, layers in module.named_children():
            if isinstance(layers, nn.ModuleList) and layers and isinstance(layers[0], GradientCheckpointingLayer):
                cut.append((module, name, layers))
    try:
        for module, name, layers in cut[:1]:
            setattr(module, name, nn.ModuleList(list(layers)[:keep]))
        whole = partitioned(model) or getattr(model, "is_quantized", False) or model.dtype == torch.float32
        yield run if whole else run._replace(model=copy.deepcopy(run.model).float())
    finally:
        for module, name, layers in cut[:1]:
            setattr(module, name, layers)


def check_causal(run: ModelRun, rows: Sequence[dict[str, Any]]) -> None:
    """Raise `InputError` where another last token changes what the model says of those before it."""
    ids = max(([*row["prompt_ids"], *row["completion_ids"]] for row in rows), key=len, default=[])
    if absent(run.model) or len(ids) < 3:
        return
    device = next(run.model.parameters()).device
    collate: Callable[[Any], Any] = PaddingCollator(0, None, kl=False)

    def hidden(ids: list[int]) -> torch.Tensor:
        batch = moved_to(collate([{"prompt_ids": [], "completion_ids": ids, "label": True}]), device)
        (states,) = run_batch(run, batch, lambda scored: scored.hidden.float())
        return states

    other = next((token for token in ids if token != ids[-1]), max(ids[-1] - 1, 0))
    with without_dropout(run.model), torch.no_grad():
        before, after = hidden(ids), hidden([*ids[:-1], other])
        with rounding_errors(unwrap_peft(run.model)):
            noise = (hidden(ids) - before).abs().max()
    if not (after - before).abs().max() <= 4 * noise + 1e-5 * before.abs().max():
        expected = "a model in which a token sees those before it only"
        fix = (
            "Its log-probs would see the very tokens they are of: load it as a causal language model (is_causal=True)."
        )
        raise InputError("model", "attention in both directions", expected, fix)


def check_positions(model: Any, longest: int, max_length: int | None) -> None:
    """Raise `InputError` for rows longer than the positions that a model has a table of."""
    base = find_base(unwrap_peft(model))
    positions: Any = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    tables: list[tuple[str, Any, torch.Tensor]] = [
        (name, m, m.weight) for name, m in base.named_modules() if isinstance(m, nn.Embedding)
    ]
    tables += [(name, None, buffer) for name, buffer in base.named_buffers() if buffer.ndim == 2]
    for name, module, table in tables:
        learned = ("pos" in name or "wpe" in name) and len(table) - getattr(module, "offset", 0) == positions
        if learned and longest > positions:
            fix = f"Rows may have {longest} tokens, mismatched pairs included: set max_length to {positions} or less."
            raise InputError("max_length", max_length, f"at most the {positions} positions of the model", fix)
