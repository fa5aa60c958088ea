"""A few seconds of head and loss against the oracle, on the user's machine: outputs and gradients.

Legend: N scored positions, D hidden, V vocabulary, B rows.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from fastkto.head import fused_linear_kto, oracle
from fastkto.head.backends import BACKENDS
from fastkto.head.logprobs import DTYPES

LENGTHS, KL_LENGTHS = (33, 1, 70, 24), (1, 70, 24, 33)  # ragged, and no multiple of a tile
D, V = 72, 1031
ULPS = 8


class Result(NamedTuple):
    """One case: the value that came nearest to its bound or missed it by most, or what was raised instead."""

    name: str
    ok: bool
    value: str
    error: float
    allowed: float


def usable_dtypes(device: torch.device) -> list[torch.dtype]:
    """The dtypes in which the device multiplies matrices."""
    usable = []
    for dtype in DTYPES:
        try:
            ones = torch.ones(16, 16, device=device, dtype=dtype)
            ones.mm(ones)
        except (RuntimeError, TypeError):
            continue
        usable.append(dtype)
    return usable


def self_check(device: torch.device) -> Iterator[Result]:
    """Every backend that serves the device, in every dtype, with the head trained and frozen."""
    serving = [name for name, backend in BACKENDS.items() if backend.unavailable(device) is None]
    for backend, dtype, trained in itertools.product(serving, usable_dtypes(device), (True, False)):
        name = f"{backend}, {str(dtype).removeprefix('torch.')}, head {'trained' if trained else 'frozen'}"
        try:
            yield Result(name, *compare(_case(device, dtype), trained=trained, backend=backend))
        except Exception as error:  # a backend that cannot run is a finding, and the others are still to be seen
            yield Result(name, False, f"{type(error).__name__}: {error}", math.inf, 0.0)


def compare(case: dict[str, Any], *, trained: bool, backend: str) -> tuple[bool, str, float, float]:
    """`max|ours - oracle| <= 2 * max|torch - oracle| + floor` of loss, rewards, z0 and gradients; the worst of them."""
    ours = _outputs(lambda *args, **kwargs: fused_linear_kto(*args, **kwargs, backend=backend), case, trained)
    plain = _outputs(oracle.linear_kto, case, trained)
    exact = _outputs(oracle.linear_kto, {key: _widen(value) for key, value in case.items()}, trained)
    worst = (True, "nothing", 0.0, 1.0)
    for key, expected in exact.items():
        floor = ULPS * torch.finfo(ours[key].dtype).eps * max(expected.abs().max().item(), 1e-3)
        allowed = 2 * _distance(plain[key], expected) + floor
        error = _distance(ours[key], expected)
        if error / allowed >= worst[2] / worst[3]:
            worst = (error <= allowed, key, error, allowed)
    return worst


def _distance(value: torch.Tensor, expected: torch.Tensor) -> float:
    distance = (value.cpu().double() - expected).abs().max().item()
    return math.inf if math.isnan(distance) else distance


def _outputs(function: Callable[..., Any], case: dict[str, Any], trained: bool) -> dict[str, torch.Tensor]:
    arguments = dict(case)
    hidden = arguments.pop("hidden").clone().requires_grad_()
    weight = arguments.pop("weight").clone().requires_grad_(trained)
    order = ("targets", "cu_seqlens", "labels", "ref_logps")
    out = function(hidden, weight, *(arguments.pop(name) for name in order), **arguments)
    out.loss.backward()
    values = {"loss": out.loss, "rewards": out.rewards, "z0": out.z0, "d hidden": hidden.grad}
    return {key: value.detach() for key, value in (values | ({"d weight": weight.grad} if trained else {})).items()}


def _case(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(device, dtype)

    def tokens(lengths: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(0, V, (sum(lengths),), generator=random).to(device)

    sums = torch.float64 if dtype == torch.float64 else torch.float32
    hidden, weight, kl_hidden = normal(sum(LENGTHS), D), normal(V, D) / D**0.5, normal(sum(KL_LENGTHS), D)
    targets, kl_targets = tokens(LENGTHS), tokens(KL_LENGTHS)
    cu_seqlens, kl_cu_seqlens = ([0, *torch.tensor(lengths).cumsum(0).tolist()] for lengths in (LENGTHS, KL_LENGTHS))
    with torch.no_grad():  # a reference a few nats away, so that z0 > 0 and no row is saturated
        logps, kl_logps = (
            oracle.row_sums(oracle.token_logprobs(_widen(h), _widen(weight), t.cpu()), b)
            for h, t, b in ((hidden, targets, cu_seqlens), (kl_hidden, kl_targets, kl_cu_seqlens))
        )
    return {
        "hidden": hidden,
        "weight": weight,
        "targets": targets,
        "cu_seqlens": cu_seqlens,
        "labels": torch.tensor([True, False, True, False], device=device),
        "ref_logps": (logps - torch.tensor([3.0, -2.0, 1.0, 4.0])).to(device, sums),
        "kl_hidden": kl_hidden,
        "kl_targets": kl_targets,
        "kl_cu_seqlens": kl_cu_seqlens,
        "ref_kl_logps": (kl_logps - torch.tensor([2.0, 1.0, -0.5, 3.0])).to(device, sums),
    }


def _widen(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.cpu().double() if value.is_floating_point() else value.cpu()
