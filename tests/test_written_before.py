"""What was written before the modules moved into rooms still works: a checkpoint, and the import paths that docs show.

`data/checkpoint-2` is step 2 of `run` below, which saves one at save_steps=2. `data/imports.txt` has the names of
docs/api.md and the other public ones that the README, the pages and the examples import.
"""

import importlib
import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from tiny import tiny_llama
from tiny_trainer import steps, trainer

from fastkto.config import KTOConfig
from fastkto.errors import InputError

DATA = Path(__file__).parent / "data"
IMPORTS = [line.split() for line in (DATA / "imports.txt").read_text(encoding="utf-8").splitlines()]
HOSTS_MISSING_HERE = (InputError, ModuleNotFoundError)
LOSSES = [0.5001789331436157, 0.4992924928665161]
"""Of steps 3 and 4, by the run that saved the checkpoint at step 2 and went on."""


def run(tmp_path):
    """The trainer of the checkpoint."""
    model = tiny_llama(layers=1, hidden=8, tie_word_embeddings=True)
    return trainer(tmp_path, model=model, max_steps=4)


def test_a_checkpoint_written_before_is_gone_on_from(tmp_path):
    folder = shutil.copytree(DATA / "checkpoint-2", tmp_path / "out" / "checkpoint-2")
    t = run(tmp_path)
    t.train(resume_from_checkpoint=str(folder))
    assert t.state.global_step == 4
    assert [line["loss"] for line in steps(t)[-2:]] == pytest.approx(LOSSES, rel=1e-5)


def test_the_arguments_of_a_checkpoint_written_before_are_a_config():
    arguments = torch.load(DATA / "checkpoint-2" / "training_args.bin", weights_only=False)
    assert type(arguments) is KTOConfig
    assert (arguments.max_steps, arguments.beta, arguments.loss_type) == (4, 0.1, "kto")


@pytest.mark.parametrize(("module", "name"), IMPORTS, ids=map(".".join, IMPORTS))
def test_an_import_path_of_before_leads_somewhere(module, name):
    try:
        assert hasattr(importlib.import_module(module), name)
    except HOSTS_MISSING_HERE:
        assert module.startswith("fastkto.integrations.")
        assert importlib.util.find_spec(module) is not None
