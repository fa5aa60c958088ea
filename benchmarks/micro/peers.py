"""Heads that give token log-probs: ours and others', as `(x, w, targets) -> logps` with a graph."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from fastkto.head import token_logprobs

Head = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _fastkto() -> Head:
    return token_logprobs


def _materialised() -> Head:
    return lambda x, w, targets: -F.cross_entropy(x @ w.T, targets, reduction="none")


def _trl() -> Head:
    """With the outputs that TRL's KTO asks its head for."""
    utils = pytest.importorskip("trl.trainer.utils", reason="TRL is not installed: fastkto[bench]")
    size, outputs = utils._CHUNKED_LOGPROB_CHUNK_SIZE, ("entropy", "mean_logits")
    return lambda x, w, t: utils._ChunkedLogProbFunction.apply(x, w, None, t, 1.0, size, None, 1.0, outputs)[0]


def _torch() -> Head:
    if not hasattr(F, "linear_cross_entropy"):
        pytest.skip(f"torch {torch.__version__} has no linear_cross_entropy: torch 2.13 does")
    return lambda x, w, targets: -F.linear_cross_entropy(x, w, targets, reduction="none")


def _cut_cross_entropy() -> Head:
    package = pytest.importorskip("cut_cross_entropy", reason="cut-cross-entropy is not installed: fastkto[bench]")
    impl = "cce" if torch.cuda.is_available() else "torch_compile"
    return lambda x, w, t: -package.linear_cross_entropy(x, w, t, reduction="none", impl=impl)


HEADS: dict[str, Callable[[], Head]] = {
    "fastkto": _fastkto,
    "materialised": _materialised,
    "trl": _trl,
    "torch": _torch,
    "cut_cross_entropy": _cut_cross_entropy,
}
