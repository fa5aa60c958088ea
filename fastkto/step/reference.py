"""The reference model's log-probs: from a second model, from the adapter switched off, or from disk by content."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers.utils import logging

from fastkto.engines import shards
from fastkto.errors import InputError
from fastkto.step.logp_cache import HIGHEST, LogpCache
from fastkto.step.micro_step import ReferenceLogps, row_logps
from fastkto.step.reference_model import fingerprint
from fastkto.trunk.modules import evaluating
from fastkto.trunk.run import Batch, ModelRun, num_forwards

logger = logging.get_logger(__name__)


def open_cache(folder: str, model: Any, tokenizer: Any, precision: str, *, adapter_off: bool = False) -> LogpCache:
    """The cache in a folder, for log-probs of this model on what this tokenizer makes of the rows."""
    about = {
        "model": fingerprint(model, precision=precision, adapter_off=adapter_off),
        "tokenizer": _digest(sorted(tokenizer.get_vocab().items()), tokenizer.all_special_tokens),
        "chat_template": _digest(tokenizer.chat_template),
    }
    return LogpCache(Path(folder) / "ref_logps.sqlite", about["model"], about)


def _digest(*values: object) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()


AsReference = Callable[[Any], AbstractContextManager[Any]]
"""Makes the policy its own reference for a while: `StartingWeights.in_place`."""


class Reference:
    """Log-probs of a micro-batch under the reference, of its rows and of its mismatched pairs.

    From the cache where they are there; a miss is computed, stored and counted. Runs without a graph and before the
    policy, so that its activations are gone when the policy's exist.
    """

    def __init__(
        self,
        policy: ModelRun,
        model: Any | None,
        cache: LogpCache | None,
        accelerator: Accelerator,
        as_reference: AsReference | None = None,
    ) -> None:
        self.policy, self.model, self.cache, self.accelerator = policy.model, model, cache, accelerator
        self._as_reference = as_reference
        self.run = policy._replace(router_logits=False)
        self.policy_moved = False
        uneven = policy.max_tokens is not None or cache is not None
        self._agrees = uneven and accelerator.num_processes > 1 and shards(accelerator)

    def __call__(self, batch: Batch) -> ReferenceLogps:
        """The log-probs; where weights are sharded, also what the ranks agree on, here for all that follows.

        They agree on how many forwards each runs, and on running the reference if one of them misses its log-probs.
        """
        prefixes = ["", "KL_"] if "KL_row_keys" in batch else [""]
        found = {prefix: self._cached(batch, prefix) for prefix in prefixes}
        missing = anywhere = any(logps is None for logps in found.values())
        forwards = 0
        if self._agrees:
            forwards, anywhere = self._agree(num_forwards(self.run, batch), missing)
        if anywhere:
            computed = self._compute(batch, forwards)
            if missing:
                self._store(batch, computed)
                found = dict(computed)
        target = found[""]
        assert target is not None
        return ReferenceLogps(target, found.get("KL_"), forwards)

    def _agree(self, forwards: int, missing: bool) -> tuple[int, bool]:
        both = torch.tensor([forwards, missing], device=self.accelerator.device)
        torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
        most, anywhere = both.tolist()
        return most, bool(anywhere)

    def fill(self, batches: Iterable[Batch], around: Callable[[Batch], AbstractContextManager[None]]) -> None:
        """Score batches into the cache, each within `around`, before the policy trains; says how many were there."""
        assert self.cache is not None
        self.cache.hits = self.cache.misses = 0
        for batch in batches:
            with around(batch):
                self(batch)
        logger.warning(
            f"Reference log-probs: {self.cache.misses} computed, {self.cache.hits} found in {self.cache.path}"
            f"{f', {self.cache.damaged} of the computed in the place of damaged ones' if self.cache.damaged else ''}."
        )
        self.cache.hits = self.cache.misses = self.cache.damaged = 0

    def _cached(self, batch: Batch, prefix: str) -> torch.Tensor | None:
        if self.cache is None:
            return None
        logps = self.cache.get(batch[f"{prefix}row_keys"])
        if any(logp is None for logp in logps):
            return None
        return torch.tensor(logps, dtype=torch.float64).to(batch["label"].device, non_blocking=True)

    def _compute(self, batch: Batch, forwards: int) -> dict[str, torch.Tensor]:
        if self.policy_moved and self.model is None and self._as_reference is None:
            raise InputError(
                "precompute_ref_log_probs",
                "a pair that was not scored before training",
                "a reference that can still be run: the policy has moved and no second model is kept",
                "Pass this data as train_dataset or eval_dataset at construction, pass a ref_model, or switch it off.",
            )
        with contextlib.ExitStack() as stack:
            if self.model is None and self._as_reference is not None:
                stack.enter_context(self._as_reference(self.accelerator.unwrap_model(self.policy)))
            model = self.policy if self.model is None else self.model
            stack.enter_context(evaluating(model))
            stack.enter_context(self.accelerator.autocast())
            both = row_logps(self.run._replace(model=model), batch, forwards=forwards)
        return {prefix: values for prefix, values in zip(("", "KL_"), both, strict=True) if values is not None}

    def _store(self, batch: Batch, logps: dict[str, torch.Tensor]) -> None:
        if self.cache is None:
            return
        for prefix, values in logps.items():
            if not values.isfinite().all():  # SQLite would keep a NaN as NULL, a miss
                kind = "NaN" if values.isnan().any() else "infinite"
                fix = "Its forward overflows in this precision: use bf16 or float32."
                raise InputError("reference", f"a log-prob that is {kind}", "log-probs that can be stored", fix)
            if values.numel() and values.max() > HIGHEST:
                fix = "Its head does not compute log-probs: use another model, or another head_backend."
                raise InputError("reference", f"a log-prob of {values.max():g}", "log-probs of at most 0", fix)
            self.cache.put(batch[f"{prefix}row_keys"], values.double().tolist())
