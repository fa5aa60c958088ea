"""A training step on fake tensors: the real trunk, and a stand-in that makes what the head would make.

Legend: N scored positions, D hidden, V vocabulary.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from fastkto.config import KTOConfig, mixed_precision
from fastkto.head.backends import choose
from fastkto.head.backends.base import Backend, HeadInputs, Wanted
from fastkto.head.logprobs import compute_dtype, module_token_stats
from fastkto.step.reference_model import StartingWeights
from fastkto.tools.footprint import GRADIENTS, HEAD, KEPT, Footprint
from fastkto.trunk.modules import evaluating, unwrap_peft
from fastkto.trunk.run import Batch, ModelRun, num_forwards, run_batch
from fastkto.trunk.scorer import Scored, install_scorer

NOTHING = Wanted(hidden=False, weight=False, bias=False)


class FakeStep:
    """Takes micro-batches as `KTOTrainer` does, the reference first, under the labels of a `Footprint`."""

    def __init__(
        self, policy: Any, reference: Any | None, start: StartingWeights | None, args: KTOConfig, footprint: Footprint
    ) -> None:
        self.policy, self.reference, self.start, self.args, self.footprint = policy, reference, start, args, footprint
        for each in (policy, reference):
            if each is not None:
                install_scorer(unwrap_peft(each))
        self.run = ModelRun.of(policy, args)

    def take(self, batch: Batch) -> None:
        """One micro-batch: afterwards only what outlives it is alive."""
        if not self.args.precompute_ref_log_probs:
            with torch.no_grad(), mixed_precision(self.args, self.args.device):
                self._run_reference(batch)
        fused = self.run.plain_head and num_forwards(self.run, batch) == 1
        # what a forward with a graph makes mostly outlives it
        with mixed_precision(self.args, self.args.device), self.footprint.labelled(KEPT):
            loss = torch.stack(run_batch(self.run, batch, lambda scored: self._with_graph(scored, fused))).sum()
        loss.backward()  # type: ignore[no-untyped-call]

    def _run_reference(self, batch: Batch) -> None:
        if self.reference is not None:
            run_batch(self.run._replace(model=self.reference, router_logits=False), batch, self._without_graph)
            return
        assert self.start is not None
        with self.start.in_place(self.policy), evaluating(self.policy):
            run_batch(self.run._replace(router_logits=False), batch, self._without_graph)

    def _without_graph(self, scored: Scored) -> None:
        hidden, targets = scored.hidden, scored.targets
        if scored.kl_hidden is not None and scored.kl_targets is not None:
            hidden, targets = torch.cat([hidden, scored.kl_hidden]), torch.cat([targets, scored.kl_targets])
        self._log_probs(scored, hidden, targets, NOTHING, None)

    def _with_graph(self, scored: Scored, fused: bool) -> torch.Tensor:
        if scored.kl_hidden is not None and scored.kl_targets is not None:
            with torch.no_grad():
                self._log_probs(scored, scored.kl_hidden, scored.kl_targets, NOTHING, None)
        weight = scored.head.module.weight
        wanted = Wanted(scored.hidden.requires_grad, weight.requires_grad, bias=False)
        cu_seqlens = scored.cu_seqlens if fused else None
        return self._log_probs(scored, scored.hidden, scored.targets, wanted, cu_seqlens).sum()

    def _log_probs(
        self, scored: Scored, hidden: torch.Tensor, targets: torch.Tensor, wanted: Wanted, cu_seqlens: list[int] | None
    ) -> torch.Tensor:
        module, softcap, scale = scored.head
        with self.footprint.labelled(HEAD):
            if not scored.head.plain:
                return module_token_stats(module, hidden, targets, softcap=softcap, scale=scale).logps
            head = HeadInputs(hidden, module.weight, targets, module.bias, softcap, scale, compute_dtype(hidden))
            backend = choose(self.args.head_backend, self.args.device, head.compute_dtype)
            made = _Made(self.footprint, backend, head, wanted, cu_seqlens)
            found: torch.Tensor = _StandIn.apply(hidden, module.weight, made)
            return found


class _Made:
    """What a call of the head makes, from shapes alone."""

    def __init__(
        self, footprint: Footprint, backend: Backend, head: HeadInputs, wanted: Wanted, cu_seqlens: list[int] | None
    ) -> None:
        self.footprint, self.backend, self.wanted, self.cu_seqlens = footprint, backend, wanted, cu_seqlens
        self.head = head

    def scratch(self, wanted: Wanted) -> None:
        """Memory of the call, freed at its end."""
        with self.footprint.labelled(HEAD):
            torch.empty(self.backend.scratch_bytes(self.head, wanted, self.cu_seqlens), dtype=torch.uint8)

    def gradients(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Of the hidden states and of the weight."""
        dx = dw = None
        with self.footprint.labelled(HEAD):
            dx = torch.empty_like(self.head.hidden_ND) if self.wanted.hidden else None
        with self.footprint.labelled(GRADIENTS):
            dw = torch.empty_like(self.head.weight_VD) if self.wanted.weight else None
        return dx, dw


class _StandIn(torch.autograd.Function):
    """Log-probs (N,) of the targets, with the gradients formed in the forward (`cu_seqlens`) or in the backward."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, made: _Made) -> torch.Tensor:
        ctx.made = made
        grads: tuple[torch.Tensor | None, ...] = ()
        frozen = made.wanted.hidden and not made.wanted.weight
        if made.cu_seqlens is not None or frozen:
            grads = made.gradients()
            made.scratch(made.wanted)
        else:
            made.scratch(NOTHING)
        ctx.save_for_backward(*grads)
        return hidden_ND.new_empty(hidden_ND.shape[0], dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = ctx.saved_tensors
        if not grads:
            grads = ctx.made.gradients()
            ctx.made.scratch(ctx.made.wanted)
        elif ctx.made.head.hidden_ND.device.type != "cpu":  # scaled by the upstream gradient
            grads = [None if x is None else x * 1.0 for x in grads]
        return *grads, None
