"""The command that an error names works in the installation at hand; the version needs no second place."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastkto
from fastkto import installation
from fastkto.errors import MissingExtra

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
METADATA = """Metadata-Version: 2.4
Name: fastkto
Version: 1.2.3
Requires-Dist: torch>=2.11
Requires-Dist: datasets>=4.7; extra == "train"
Requires-Dist: pyyaml; extra == "train"
Requires-Dist: peft>=0.18; extra == "peft"
Requires-Dist: trl==1.16.0; extra == "bench"
Requires-Dist: fastkto[peft,train]; extra == "bench"
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install: from nothing at all, or with what pip notes of an origin."""
    monkeypatch.setattr(installation, "CHECKOUT", tmp_path / "site-packages")

    def install(noted):
        folder = tmp_path / "fastkto-1.2.3.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(METADATA, encoding="utf-8")
        if noted is not None:
            (folder / "direct_url.json").write_text(json.dumps(noted), encoding="utf-8")
        found = importlib.metadata.Distribution.at(folder)
        monkeypatch.setattr(installation, "_installed", lambda: found)

    return install


def test_an_editable_checkout_is_named_with_its_folder(installed, tmp_path):
    checkout = tmp_path / "my code"
    checkout.mkdir()
    installed({"url": checkout.as_uri(), "dir_info": {"editable": True}})
    assert installation.add_command("train", "yaml") == f"pip install --no-build-isolation -e '{checkout}[train]'"
    assert installation.build_command() == f"pip install --no-build-isolation -e '{checkout}'"
    assert str(installation.origin()) == f"{checkout}, editable"


def test_a_folder_that_was_copied_is_built_anew(installed, tmp_path):
    installed({"url": tmp_path.as_uri(), "dir_info": {}})
    assert installation.add_command("peft", "peft") == f"pip install --no-build-isolation '{tmp_path}[peft]'"


def test_a_wheel_is_named_and_not_built(installed, tmp_path):
    wheel = tmp_path / "fastkto-1.2.3-cp311-abi3-linux_x86_64.whl"
    wheel.touch()
    installed({"url": wheel.as_uri(), "archive_info": {}})
    assert installation.add_command("train", "yaml") == f"pip install '{wheel}[train]'"
    assert installation.build_command() is None


def test_an_sdist_is_built_although_pip_has_built_it_before(installed, tmp_path):
    sdist = tmp_path / "fastkto-1.2.3.tar.gz"
    sdist.touch()
    installed({"url": sdist.as_uri(), "archive_info": {}})
    assert installation.add_command("peft", "peft") == f"pip install --no-build-isolation '{sdist}[peft]'"
    assert "--force-reinstall --no-cache-dir" in installation.build_command()
    assert installation.build_command().endswith(str(sdist))


@pytest.mark.parametrize("url", ["file:///no/such/fastkto-1.2.3.whl", "https://example.org/fastkto-1.2.3.tar.gz"])
def test_of_what_is_gone_or_elsewhere_the_missing_packages_are_named(installed, url):
    installed({"url": url})
    assert installation.add_command("train", "datasets") == "pip install 'datasets>=4.7' pyyaml"
    assert installation.add_command("bench", "trl") == "pip install trl==1.16.0 'peft>=0.18' 'datasets>=4.7' pyyaml"
    assert installation.build_command() is None


def test_from_an_index_the_index_has_the_rest(installed):
    installed(None)
    assert installation.add_command("train", "datasets") == "pip install 'fastkto[train]'"
    assert installation.build_command().endswith("--no-binary fastkto fastkto==1.2.3")
    assert installation.version() == "1.2.3"


def test_a_checkout_that_is_not_installed_is_found(monkeypatch):
    monkeypatch.setattr(installation, "_installed", lambda: None)
    assert installation.origin() == (ROOT, True)
    assert installation.version() == "0.0.0+uninstalled"
    assert fastkto.__version__ == "0.0.0+uninstalled"


def test_files_without_any_metadata_name_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(installation, "CHECKOUT", tmp_path)
    monkeypatch.setattr(installation, "_installed", lambda: None)
    assert installation.add_command("peft", "peft") == "pip install peft"
    assert installation.build_command() is None


def test_what_pip_is_told_exists_in_the_metadata():
    extras = PYPROJECT["project"]["optional-dependencies"]
    found = importlib.metadata.distribution("fastkto")
    assert len(installation._requirements(found, "train")) == len(extras["train"])


def test_an_error_ends_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(installation, "origin", lambda: installation.Origin(tmp_path, editable=True))
    assert str(MissingExtra("peft", "peft")).endswith(f"Run: pip install --no-build-isolation -e '{tmp_path}[peft]'")


def test_no_message_names_a_package_of_ours_by_itself():
    """Nothing is published yet, and of a checkout pip would take another one."""
    for file in (ROOT / "fastkto").rglob("*.py"):
        assert "install 'fastkto" not in file.read_text(encoding="utf-8"), file


def version_of(folder, *python):
    command = [*(python or [sys.executable]), "setup.py", "--version"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


@pytest.fixture
def exported(tmp_path):
    """The files that say the version, without git."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_without_git_there_is_a_version(exported):
    fallback = PYPROJECT["tool"]["setuptools_scm"]["fallback_version"]
    assert version_of(exported) == fallback


def test_without_setuptools_scm_there_is_a_version(exported):
    hide = "import sys, runpy, importlib.util as u; real = u.find_spec; sys.argv = sys.argv[1:]\n"
    hide += "u.find_spec = lambda name, *rest: None if name == 'setuptools_scm' else real(name, *rest)\n"
    hide += "runpy.run_path('setup.py')"
    fallback = PYPROJECT["tool"]["setuptools_scm"]["fallback_version"]
    assert version_of(exported, sys.executable, "-c", hide) == fallback
    (exported / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: fastkto\nVersion: 4.5.6\n", encoding="utf-8")
    assert version_of(exported, sys.executable, "-c", hide) == "4.5.6"
