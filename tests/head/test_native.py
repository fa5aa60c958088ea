"""The native backend in tiny tiles, on awkward inputs, with sanitizers, and its absence."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from heads import (
    LOSS,
    OPTIONS,
    TRAINED,
    batch,
    case,
    compare,
    gradients,
    poisoned_memory,  # noqa: F401 - fixture
    run,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_close, assert_within

from fastkto.errors import InputError
from fastkto.head import backends, fused_linear_kto, oracle, token_logprobs, token_stats
from fastkto.head.backends import choose
from fastkto.head.backends.base import HeadInputs, Wanted
from fastkto.head.backends.native import NativeBackend, Tiling
from fastkto.native import loader

ROOT = Path(__file__).parents[2]
REASON = NativeBackend().unavailable(torch.device("cpu"))
# The library is optional: an install without a compiler has no native backend to test.
needs_library = pytest.mark.skipif(REASON is not None, reason=f"native backend: {REASON}")
TINY = Tiling(rows=5, columns=3, group=6, span=9)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(NativeBackend, "tiling", lambda self, head: TINY)


@needs_library
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 11), (13, 9, 50), (33, 5, 19)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_oracle_in_tiny_tiles(tiny, shape, dtype, options):
    hidden, weight, targets, bias = case(*shape, dtype=dtype, bias=options["bias"])
    targets[::4] = -100
    compare("native", hidden, weight, targets, bias, options["softcap"], options["scale"])


@needs_library
@settings(max_examples=60, deadline=None)
@given(
    tiling=st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(1, 3), st.integers(1, 5)),
    shape=st.tuples(st.integers(0, 70), st.integers(1, 33), st.integers(1, 150)),
    layout=st.sampled_from(["dense", "columns", "every other", "offset"]),
    seed=st.integers(0, 99),
)
def test_any_shape_tiling_and_layout(tiling, shape, layout, seed):
    hidden, weight, targets, bias = case(*shape, bias=seed % 2 == 0, seed=seed)
    hidden, weight, targets = (relaid(x, layout) for x in (hidden, weight, targets))
    rows, columns, group, span = tiling
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            NativeBackend, "tiling", lambda self, head: Tiling(rows, columns, group * columns, span * columns)
        )
        compare("native", hidden, weight, targets, bias, 4.0 if seed % 3 == 0 else None, 1.0 if seed % 5 else 0.7)


def relaid(x, layout):
    """The same values in other strides."""
    if layout == "columns" and x.ndim == 2:
        return x.T.contiguous().T
    if layout == "every other":
        return torch.stack([x, x], -1).flatten(-2)[..., ::2]
    return torch.cat([x[:1], x])[1:] if layout == "offset" else x


@needs_library
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weight_and_statistics(tiny, options, dtype):
    hidden, weight, targets, bias = case(23, 8, 30, dtype=dtype, bias=options["bias"])
    targets[3] = -100
    head = {"softcap": options["softcap"], "scale": options["scale"]}
    upstream = torch.linspace(-1, 1, 23)
    _, (ours,) = gradients(
        lambda h: token_logprobs(h, weight, targets, bias=bias, backend="native", **head), [hidden], upstream
    )
    _, (theirs,) = gradients(lambda h: oracle.token_logprobs(h, weight, targets, bias=bias, **head), [hidden], upstream)
    wide = [None if x is None else x.double() for x in (hidden, weight, bias)]
    _, (exact,) = gradients(
        lambda h: oracle.token_logprobs(h, wide[1], targets, bias=wide[2], **head), wide[:1], upstream
    )
    assert_close(ours, exact, theirs, name="d hidden")
    stats = token_stats(hidden, weight, targets, bias=bias, backend="native", **head)
    z = oracle.logits(wide[0], wide[1], bias=wide[2], **head)
    assert_close(stats.entropy, oracle.token_entropy(z), oracle.token_entropy(z.float()), name="entropy")
    assert_close(stats.mean_logits, z.mean(1), z.float().mean(1), name="mean logit")


@needs_library
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("block_positions", [1, 6, 1000])
def test_blocks_of_rows_in_tiny_tiles(monkeypatch, tiny, trained, block_positions):
    monkeypatch.setattr(NativeBackend, "block_bytes", block_positions * 30 * 4)
    inputs = batch([0, 4, 1, 0, 9, 3, 2], bias="bias" in trained)
    kwargs = {**LOSS, "softcap": 6.0, "scale": 0.8}
    ours, grads = run(fused_linear_kto, inputs, trained, backend="native", **kwargs)
    theirs, torch_grads = run(oracle.linear_kto, inputs, trained, **kwargs)
    wide = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    exact, oracle_grads = run(oracle.linear_kto, wide, trained, **kwargs)
    for name in ("loss", "rewards", "kl"):
        assert_close(getattr(ours, name), getattr(exact, name), getattr(theirs, name), name=name)
    for name, grad in grads.items():
        assert_close(grad, oracle_grads[name], torch_grads[name], name=f"d {name}")


@pytest.mark.bits
@needs_library
@pytest.mark.parametrize(("d", "v"), [(64, 1000), (576, 1300), (2050, 700)])
def test_logps_depend_on_nothing_but_their_own_position(monkeypatch, d, v):
    """Bitwise: rows beside it, threads, the path, the block. So policy == reference gives exactly r = 0."""
    hidden, weight, targets, _ = case(300, d, v)
    logps = token_logprobs(hidden, weight, targets, backend="native")
    for part in (slice(0, 1), slice(7, 12), slice(3, 20), slice(100, 177), slice(1, 300)):
        assert torch.equal(token_logprobs(hidden[part], weight, targets[part], backend="native"), logps[part])
    threads = torch.get_num_threads()
    torch.set_num_threads(5 - min(threads, 4))
    again = token_logprobs(hidden, weight, targets, backend="native")
    torch.set_num_threads(threads)
    assert torch.equal(again, logps)
    assert torch.equal(token_logprobs(hidden.clone().requires_grad_(), weight, targets, backend="native"), logps)
    monkeypatch.setattr(NativeBackend, "block_bytes", 100 * v * 4)
    backend, bounds = NativeBackend(), [0, 40, 41, 120, 300]

    def ones(_, logps_N, rows):
        return logps_N.new_ones(len(rows) - 1)

    for wanted in (Wanted(True, True, False), Wanted(True, False, False)):
        head = HeadInputs(hidden, weight, targets, None, None, 1.0, torch.float32)
        out, _ = backend.forward_backward(head, bounds, ones, wanted, stats=True)
        assert torch.equal(out.logps_N, logps)


@needs_library
def test_error_against_float64():
    hidden, weight, targets, _ = case(1500, 256, 6000)
    weight /= 8
    error = token_logprobs(hidden, weight, targets, backend="native").double() - oracle.token_logprobs(
        hidden.double(), weight.double(), targets
    )
    assert_within(error.abs().mean().item(), 0.0, absolute=1e-5, name="mean absolute error")
    assert_within(error.mean().item(), 0.0, absolute=1e-6, name="bias")


@needs_library
def test_masked_vocabulary_fills_whole_tiles(tiny):
    """A bias of -inf takes tokens out, also where a first tile has nothing else."""
    hidden, weight, targets, bias = case(9, 8, 21, bias=True)
    bias[:7] = -torch.inf
    targets = targets.clamp(min=7)
    compare("native", hidden, weight, targets, bias, None, 1.0)
    _, (frozen,) = gradients(
        lambda h: token_logprobs(h, weight, targets, bias=bias, backend="native"), [hidden], torch.ones(9)
    )
    assert frozen.isfinite().all()


@pytest.mark.bits
@needs_library
def test_inference_mode_and_many_threads():
    hidden, weight, targets, _ = case(40, 16, 3000)
    expected = token_logprobs(hidden, weight, targets, backend="native")
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    with torch.inference_mode():
        logps = token_logprobs(hidden, weight.requires_grad_(), targets, backend="native")
    torch.set_num_threads(threads)
    assert torch.equal(logps, expected)


@pytest.mark.parametrize("threads", [1, 16, 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("depth", [1, 64, 576, 2048, 4096, 8192, 16384])
def test_scratch_stays_below_64_mib(monkeypatch, dtype, depth, threads):
    """Logits, widened hidden states, widened weights and their gradient's sum of one step, at any N and V."""
    head = HeadInputs(
        torch.empty(1, depth, dtype=dtype, device="meta"),
        torch.empty(10**6, depth, dtype=dtype, device="meta"),
        torch.empty(1, dtype=torch.int64, device="meta"),
        None,
        None,
        1.0,
        dtype,
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tiling = NativeBackend().tiling(head)
    assert tiling.group % tiling.columns == 0
    narrow = dtype != torch.float32
    backward = tiling.rows * tiling.group + narrow * (tiling.rows + 2 * tiling.group) * depth
    forward = (
        (32 << 20) // 4
        + 4 * tiling.rows * (tiling.span // tiling.columns)
        + narrow * (tiling.rows + tiling.span) * depth
    )
    assert 4 * max(backward, forward) <= 64 << 20


@needs_library
def test_fuzz_with_sanitizers(tmp_path):
    """Address and undefined-behaviour sanitizers over the kernels of every instruction set here, against double."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler: the library was built elsewhere")
    sources = [ROOT / "csrc" / "fuzz.cpp", *sorted((ROOT / "csrc").glob("kernels_*.cpp"))]
    flags = (
        "-std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -ffp-contract=fast -Wno-psabi"
    )
    subprocess.run([compiler, *flags.split(), *map(str, sources), "-o", str(tmp_path / "fuzz")], check=True)
    done = subprocess.run([str(tmp_path / "fuzz"), "20011"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("fine\n")


def test_a_failing_compiler_leaves_a_reason_and_no_error(tmp_path, monkeypatch):
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        str(tmp_path),
        "--build-temp",
        str(tmp_path),
    ]
    absent = {"CC": "no-such-compiler", "CXX": "no-such-compiler"}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **absent}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(loader, "PACKAGE", tmp_path / "fastkto")
    reason = loader.load.__wrapped__()
    assert reason is not None
    assert "no-such-compiler" in reason


def test_a_library_that_does_not_load_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "PACKAGE", tmp_path)
    assert "not built" in loader.load.__wrapped__()
    (tmp_path / "_native.abi3.so").write_text("no library")
    assert "does not load" in loader.load.__wrapped__()


@pytest.fixture
def without_a_library(tmp_path, monkeypatch):
    """As an install without a compiler leaves the package."""
    (tmp_path / "_native.reason").write_text("CompileError: no c++\n")
    monkeypatch.setattr(loader, "PACKAGE", tmp_path)
    for cached in (loader.load, backends._say_what_is_missed):
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in (loader.load, backends._say_what_is_missed):
        cached.cache_clear()


def test_a_head_without_its_library_says_so_once_on_one_line(without_a_library, caplog):
    hidden, weight, targets = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2])
    token_logprobs(hidden.double(), weight.double(), targets)
    token_logprobs(hidden, weight, targets, backend="tiles")
    assert caplog.messages == [], "nothing is missed in float64, or where tiles were asked for"
    for _ in range(2):
        token_logprobs(hidden, weight, targets)
    (said,) = caplog.messages
    assert re.search(r"tiles backend.* slower .*CompileError: no c\+\+\. .* run: pip install ", said)
    assert "\n" not in said


def test_what_is_asked_for_by_name_is_refused_with_the_command_that_builds_it(without_a_library):
    with pytest.raises(InputError, match=r"not built: CompileError: no c\+\+\. .* run: pip install "):
        choose("native", torch.device("cpu"))


def test_other_devices_are_refused():
    assert "cuda" in NativeBackend().unavailable(torch.device("cuda"))


@needs_library
def test_float64_asked_of_it_is_the_tiles_backends():
    cpu = torch.device("cpu")
    assert choose("native", cpu).name == "native"
    assert choose("native", cpu, torch.float64).name == "tiles"
