"""The seams of hosts: what fits, what is newer and fits, what differs, from stand-ins for hosts. No host is needed."""

import sys
from importlib.metadata import PackageNotFoundError
from types import ModuleType

import pytest
from transformers.utils import logging

from fastkto.cli import main
from fastkto.errors import InputError
from fastkto.integrations.seams import WAYS, Seam, Way, examine, require_seams
from fastkto.integrations.seams import check as seams_check

SEAMS = (
    Seam("standin.trainers:Trainer.__init__", mentions=("beta", "_metrics")),
    Seam("standin.trainers:Trainer.loss", (("model",), ("model", "inputs")), mentions=("KL_completion_ids",)),
    Seam("standin.trainers:TRAINERS", entries=("kto",)),
)
WAY = Way("fastkto.integrations.standin", "standin", ("1.0", "1.1"), SEAMS)
TAKEN = (
    "fastkto.integrations.standin was not run with standin 2.0, only with 1.0, 1.1; what it replaces is the same "
    "there, so it is used."
)


class Trainer:
    def __init__(self):
        self.beta = 0.1
        self._metrics = {}

    def loss(self, model, inputs):
        for _, name in [("", "completion_ids"), ("KL_", "KL_completion_ids")]:
            inputs[name]


@pytest.fixture
def host(monkeypatch):
    """A host of this trainer and version, as `WAYS["standin"]`."""

    def install(trainer=Trainer, version="1.1", trainers=("dpo", "kto")):
        module = ModuleType("standin.trainers")
        module.Trainer, module.TRAINERS = trainer, dict.fromkeys(trainers)
        monkeypatch.setitem(sys.modules, "standin", ModuleType("standin"))
        monkeypatch.setitem(sys.modules, "standin.trainers", module)
        monkeypatch.setattr(seams_check, "version", {"standin": version}.__getitem__)
        monkeypatch.setitem(WAYS, "standin", WAY)
        logging.get_logger().warning_once.__func__.cache_clear()

    return install


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_version_that_was_run_is_taken_without_a_word(host, warnings, version):
    host(version=version)
    assert require_seams("standin") == version
    assert not warnings.messages


def test_a_newer_version_that_fits_is_taken_with_one_line(host, warnings):
    host(version="2.0")
    for _ in range(3):
        assert require_seams("standin") == "2.0"
    assert warnings.messages == [TAKEN]


class Parameters(Trainer):
    def loss(self, batch):
        return "KL_completion_ids"


class Nothing:
    def __init__(self):
        self.beta = self._metrics = None


class OtherColumn(Nothing):
    def loss(self, model):
        return "KL_input_ids"


class OtherState:
    def __init__(self):
        self.beta = 1

    loss = Trainer.loss


LOSS = "standin.trainers.Trainer.loss of standin"
RUN = "as in 1.0, 1.1. Run: pip install 'standin==1.1'"
KNOWN = "expected ('model',) or ('model', 'inputs'), as in 1.0, 1.1."
DIFFERS = {
    "parameters": (
        {"trainer": Parameters},
        f"{LOSS} 2.0: got ('batch',), {KNOWN} Run: pip install 'standin==1.1'",
    ),
    "a method": (
        {"trainer": Nothing},
        f"{LOSS} 2.0: got 'nothing of this name', expected it to be there, {RUN}",
    ),
    "a column": (
        {"trainer": OtherColumn},
        f"{LOSS} 2.0: got 'code without KL_completion_ids', expected code that uses KL_completion_ids, {RUN}",
    ),
    "an attribute": (
        {"trainer": OtherState},
        "standin.trainers.Trainer.__init__ of standin 2.0: got 'code without _metrics', expected code that uses beta, "
        f"_metrics, {RUN}",
    ),
    "an entry": (
        {"trainers": ["dpo"]},
        f"standin.trainers.TRAINERS of standin 2.0: got ['dpo'], expected entries kto, {RUN}",
    ),
    "a patch of a version that was run": (
        {"trainer": Parameters, "version": "1.1"},
        f"{LOSS} 1.1: got ('batch',), {KNOWN} Install the host unmodified, and switch other patches of it off.",
    ),
}


@pytest.mark.parametrize("case", DIFFERS)
def test_a_seam_that_differs_is_named(host, case):
    given, message = DIFFERS[case]
    host(**{"version": "2.0", **given})
    with pytest.raises(InputError) as error:
        require_seams("standin")
    assert str(error.value) == message


def test_a_host_that_is_absent_is_named(host, monkeypatch):
    host()

    def absent(package):
        raise PackageNotFoundError

    monkeypatch.setattr(seams_check, "version", absent)
    with pytest.raises(InputError, match=r"version of standin: got None, .* Run: pip install 'standin==1.1'"):
        require_seams("standin")


def test_a_host_that_does_not_import_is_named(host, monkeypatch):
    host()
    monkeypatch.setitem(sys.modules, "standin.trainers", None)
    with pytest.raises(InputError, match=r'Trainer.__init__ of standin 1.1: got "?.?ModuleNotFoundError'):
        require_seams("standin")


def test_a_subclass_that_calls_its_parent_uses_what_the_parent_uses(host):
    class Wrapped(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    host(Wrapped)
    assert require_seams("standin") == "1.1"


def test_every_way_names_its_host_and_its_seams():
    for way in WAYS.values():
        assert way.tried
        assert way.seams
        for seam in way.seams:
            assert seam.path.count(":") == 1


@pytest.mark.parametrize("key", ["trl", "trl head"])
def test_the_installed_trl_fits(key):
    pytest.importorskip("trl", reason="the test extra brings TRL, the host")
    assert examine(WAYS[key]).problem is None


def test_doctor_says_whether_a_host_fits(host, monkeypatch, capsys):
    host(version="2.0")
    monkeypatch.setitem(WAYS, "axolotl", WAY)
    assert main(["doctor", "--host", "axolotl"]) == 0
    assert capsys.readouterr().out == f"OK   fastkto.integrations.standin in standin 2.0\n     {TAKEN}\n"
    host(Parameters, version="2.0")
    assert main(["doctor", "--host", "axolotl"]) == 1
    assert capsys.readouterr().out.startswith(f"FAIL fastkto.integrations.standin in standin 2.0\n     {LOSS} 2.0: got")
    assert main(["doctor", "--host", "axolotl", "--json"]) == 1
    assert '"fits": false' in capsys.readouterr().out
