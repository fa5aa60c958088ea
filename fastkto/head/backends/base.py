"""What a backend of the LM head is given and returns. Legend: N scored positions, D hidden, V vocabulary, B rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch

from fastkto.head.backends.loss_terms import RowSums, Terms
from fastkto.losses.kto import LossSettings

IGNORE_INDEX = -100


@dataclass(frozen=True)
class HeadInputs:
    """One head call. Logits are `softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)`."""

    hidden_ND: torch.Tensor
    weight_VD: torch.Tensor
    targets_N: torch.Tensor
    """int64, in [0, V), or `IGNORE_INDEX`: that position has log-prob 0 and no gradient."""
    bias_V: torch.Tensor | None
    softcap: float | None
    scale: float
    compute_dtype: torch.dtype
    """Dtype of the GEMMs' operands: the autocast dtype where on, else that of the hidden states."""

    @property
    def sum_dtype(self) -> torch.dtype:
        """Dtype of logits, statistics and gradient sums."""
        return torch.float64 if self.compute_dtype == torch.float64 else torch.float32

    @property
    def ignored_N(self) -> torch.Tensor:
        """Positions that have log-prob 0 and no gradient."""
        return self.targets_N == IGNORE_INDEX

    def rows(self, part: slice) -> "HeadInputs":
        """The same head on some of the positions."""
        return replace(self, hidden_ND=self.hidden_ND[part], targets_N=self.targets_N[part])


class HeadOutputs(NamedTuple):
    """Per position, in `sum_dtype`."""

    logps_N: torch.Tensor
    lse_N: torch.Tensor
    entropy_N: torch.Tensor | None
    """nats; with `stats` only."""
    mean_logits_N: torch.Tensor | None
    """mean over the vocabulary; with `stats` only."""
    unit_dx_ND: torch.Tensor | None
    """d logp / d hidden; with `unit_dx` only."""


class HeadGradients(NamedTuple):
    """Gradients in the inputs' dtypes; None where not asked for."""

    hidden_ND: torch.Tensor | None
    weight_VD: torch.Tensor | None
    bias_V: torch.Tensor | None


class Wanted(NamedTuple):
    """Which gradients to compute."""

    hidden: bool
    weight: bool
    bias: bool


Coefficients = Callable[[slice, torch.Tensor, Sequence[int]], torch.Tensor]
"""(rows, their positions' logps, their offsets) -> d loss / d logp of those rows; once a block, in order, no sync."""


class Backend(Protocol):
    """The LM head fused with logsumexp and target gather; no tensor of N x V outlives a tile."""

    name: str

    def unavailable(self, device: torch.device) -> str | None:
        """Why this backend cannot serve the device, or None if it can."""
        ...

    def forward(self, head: HeadInputs, *, stats: bool, unit_dx: bool) -> HeadOutputs:
        """Log-probs of the targets; `unit_dx` also forms d logp / d hidden, for a frozen weight."""
        ...

    def backward(self, head: HeadInputs, lse_N: torch.Tensor, grad_N: torch.Tensor, wanted: Wanted) -> HeadGradients:
        """Gradients of `(grad * logps).sum()`, recomputing the logits."""
        ...

    def row_sums(self, logps_N: torch.Tensor, cu_seqlens: Sequence[int], ref_logps_B: torch.Tensor | None) -> RowSums:
        """The rows' log-probs and log-ratios, before z0 is known."""
        ...

    def terms(
        self,
        rows: RowSums,
        labels_B: torch.Tensor,
        kl_sum_and_count: torch.Tensor | None,
        loss: LossSettings,
        num_rows: float | torch.Tensor,
        weights_B: torch.Tensor | None = None,
    ) -> Terms:
        """The loss, its coefficients and the logged sums, once z0 is; `num_rows` is what eq. (6) divides by."""
        ...

    def forward_backward(
        self,
        head: HeadInputs,
        cu_seqlens: Sequence[int],
        coefficients: Coefficients,
        wanted: Wanted,
        *,
        stats: bool,
    ) -> tuple[HeadOutputs, HeadGradients]:
        """Both at once by blocks of whole rows: a block's logits become its gradient, with no recompute."""
        ...

    def scratch_bytes(self, head: HeadInputs, wanted: Wanted, cu_seqlens: Sequence[int] | None) -> int:
        """Bytes alive at the peak of a call beside its inputs and results, from shapes alone.

        With `cu_seqlens` of `forward_backward`; without, of `forward`, or of `backward` where a gradient is wanted.
        """
        ...
