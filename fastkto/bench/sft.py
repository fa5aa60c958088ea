"""Plain fine-tuning on the target completions by KTO's own trunk, packing and head: what its price is counted from.

Legend: N scored positions, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import Trainer

from fastkto.head.backends import choose
from fastkto.head.backends.base import Wanted
from fastkto.head.logprobs import head_inputs
from fastkto.training import KTOTrainer
from fastkto.trunk.run import run_batch
from fastkto.trunk.scorer import Scored


class SFTTrainer(KTOTrainer):
    """Cross entropy, the mean over the completion tokens of a batch. `precompute_ref_log_probs` keeps it from a copy.

    No reference is ever asked.
    """

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
        """`cross_entropy(softcap(scale * linear(hidden, weight, bias)), targets)`; a bias gets no gradient."""
        self.tokens = inputs["num_tokens"]

        def cross_entropy(scored: Scored) -> torch.Tensor:
            module, softcap, scale = scored.head
            how = (scored.targets, module.bias, softcap, scale, scored.cu_seqlens)
            loss: torch.Tensor = _CrossEntropy.apply(scored.hidden, module.weight, *how)
            return loss

        return run_batch(self._model_run._replace(model=model), inputs, cross_entropy)[0]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's line and the tokens of the step, without KTO's figures."""
        Trainer.log(self, logs | {"num_tokens": self.tokens}, start_time)

    def _fill_cache(self) -> None:
        """There is nothing to score."""


class _CrossEntropy(torch.autograd.Function):
    """Logits become gradients as they are formed, as in `fused_linear_kto`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_N: torch.Tensor,
        bias_V: torch.Tensor | None,
        softcap: float | None,
        scale: float,
        cu_seqlens: list[int],
    ) -> torch.Tensor:
        head, _ = head_inputs(hidden_ND, weight_VD, targets_N, bias_V, softcap, scale)
        wanted = Wanted(ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias=False)
        share = -1.0 / len(targets_N)

        def coefficients(rows: slice, logps_N: torch.Tensor, block_cu_seqlens: Sequence[int]) -> torch.Tensor:
            return logps_N.new_full((len(block_cu_seqlens) - 1,), share)

        backend = choose("auto", hidden_ND.device, head.compute_dtype)
        out, grads = backend.forward_backward(head, cu_seqlens, coefficients, wanted, stats=False)
        ctx.save_for_backward(grads.hidden_ND, grads.weight_VD)
        return out.logps_N.sum() * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = ctx.saved_tensors
        if grad.device.type != "cpu" or grad != 1:
            grads = [None if x is None else x * grad for x in grads]
        return *grads, *(None,) * 5
