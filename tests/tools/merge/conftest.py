"""Every test here merges `adapter` on `base` to `merged` in a folder of its own."""

import pytest


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
