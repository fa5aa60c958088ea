"""`fastkto doctor` finds what is wrong, and only that."""

import json

import torch

from fastkto import installation
from fastkto.cli import main
from fastkto.head.backends import BACKENDS
from fastkto.head.backends.native import NativeBackend
from fastkto.head.backends.tiles import TileBackend
from fastkto.native import loader

CPU = torch.device("cpu")


class Drifting(TileBackend):
    """Gradients off by a little."""

    name = "drifting"

    def to_gradient(self, tile, *args):
        super().to_gradient(tile, *args)
        tile *= 1.001


class Broken(TileBackend):
    name = "broken"

    def forward(self, *args, **kwargs):
        raise RuntimeError("no kernel image")

    forward_backward = forward


class Elsewhere(TileBackend):
    name = "elsewhere"

    def unavailable(self, device):
        return "needs another machine"


def doctor(capsys, *flags):
    code = main(["doctor", *flags])
    return code, capsys.readouterr().out


def test_a_sound_installation_passes(capsys):
    code, shown = doctor(capsys)
    assert code == 0
    assert "all OK" in shown
    assert "FAIL" not in shown
    assert torch.__version__ in shown
    for name, backend in BACKENDS.items():
        why = backend.unavailable(CPU)
        for dtype in ("float64", "float32", "bfloat16", "float16"):
            assert (f"OK   {name}, {dtype}, head trained" in shown) == (why is None)
        assert why is None or why in shown


def test_json_holds_the_same(capsys):
    code, shown = doctor(capsys, "--json")
    found = json.loads(shown)
    assert code == 0
    assert found["ok"] is True
    assert {"python", "torch", "transformers"} <= found["versions"].keys()
    assert [backend["chosen"] for backend in found["backends"]].count(True) == 1
    assert all(0 <= check["error"] <= check["allowed"] for check in found["checks"])


def test_wrong_gradients_fail(capsys, monkeypatch):
    monkeypatch.setitem(BACKENDS, "drifting", Drifting())
    code, shown = doctor(capsys)
    assert code == 1
    assert "FAIL drifting, float32, head trained" in shown
    assert "d weight" in shown or "d hidden" in shown
    assert "FAIL tiles" not in shown


def test_a_backend_that_raises_fails_and_the_others_are_checked(capsys, monkeypatch):
    monkeypatch.setitem(BACKENDS, "broken", Broken())
    code, shown = doctor(capsys, "--json")
    assert code == 1
    checks = {check["name"]: check for check in json.loads(shown)["checks"]}
    assert checks["broken, float32, head trained"]["error"] is None
    assert "no kernel image" in checks["broken, float32, head trained"]["value"]
    assert checks["tiles, float32, head trained"]["ok"]


def test_says_why_a_backend_is_not_used(capsys, monkeypatch):
    monkeypatch.setitem(BACKENDS, "elsewhere", Elsewhere())
    code, shown = doctor(capsys)
    assert code == 0
    assert "needs another machine" in shown


def test_a_cuda_build_of_torch_without_a_driver_is_checked_on_the_cpu(capsys, monkeypatch):
    """As torch behaves there: the accelerator it was built for is named unless one asks whether it is available."""

    def current_accelerator(check_available=False):
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    code, shown = doctor(capsys)
    assert code == 0
    assert "cpu (" in shown
    assert "built for CUDA 13.2 and finds no GPU" in shown


def test_a_missing_library_and_the_origin_are_shown(capsys, monkeypatch, tmp_path):
    (tmp_path / "_native.reason").write_text("CompileError: no c++\n")
    monkeypatch.setattr(loader, "PACKAGE", tmp_path)
    monkeypatch.setattr(NativeBackend, "unavailable", lambda self, device: loader.load.__wrapped__())
    code = main(["doctor"])
    out, err = capsys.readouterr()
    assert code == 0
    assert "native      its library is not built: CompileError: no c++. To build it" in out
    assert err == "", "it is said once"
    assert f"from {installation.origin()}" in out
