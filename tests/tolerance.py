"""The only comparison in the tests: against the oracle, relative to what torch itself does in that dtype."""

import torch

# What is left when torch happens to hit the oracle exactly: a few units in the last place of the largest value.
_ULPS = 8


def assert_close(
    ours: torch.Tensor,
    oracle: torch.Tensor,
    same_dtype: torch.Tensor | None = None,
    *,
    name: str = "value",
    condition: float = 1.0,
) -> None:
    """`max|ours - oracle| <= 2 * max|same-dtype torch - oracle| + floor[dtype]`; NaN and inf must coincide.

    `same_dtype` is what plain torch computes in the inputs' dtype. Without it only the floor is allowed:
    a few units in the last place, at the scale of the oracle's largest value. `condition`: how much a relative error
    of the inputs grows on the way to the result.
    """
    assert ours.shape == oracle.shape, f"{name}: shape {tuple(ours.shape)} instead of {tuple(oracle.shape)}"
    if ours.numel() == 0:
        return
    ours_64, oracle_64 = ours.detach().double().cpu(), oracle.detach().double().cpu()
    finite = oracle_64.isfinite()
    assert torch.equal(ours_64.isfinite(), finite), f"{name}: non-finite values in other places"
    assert torch.equal(ours_64.isnan(), oracle_64.isnan()), f"{name}: NaN in other places"
    if not finite.any():
        return
    ours_64, oracle_64 = ours_64[finite], oracle_64[finite]
    scale = oracle_64.abs().max().item()
    allowed = _ULPS * torch.finfo(ours.dtype).eps * max(scale, 1e-3) * condition
    if same_dtype is not None:
        torch_64 = same_dtype.detach().double().cpu()[finite]
        allowed += 2 * (torch_64 - oracle_64).abs().max().item()
    error = (ours_64 - oracle_64).abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3e} above {allowed:.3e} (largest value {scale:.3e})"


def assert_within(ours: float, expected: float, *, relative: float = 0.0, absolute: float = 0.0, name: str = "value"):
    """A stated bound for figures that pass through an optimizer, where the oracle is another implementation."""
    allowed = absolute + relative * abs(expected)
    assert abs(ours - expected) <= allowed, f"{name}: {ours!r} instead of {expected!r} (allowed +-{allowed:.3e})"
