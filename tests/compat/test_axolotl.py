"""Axolotl's own KTO beside the same with one line more in its YAML, in the installed, unmodified host."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip("axolotl", reason="runs among the host's pins: tests/compat/environments.py")

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"  # before its import: it reports runs otherwise

from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_preference_datasets
from axolotl.core.trainers.trl import AxolotlKTOTrainer
from axolotl.train import train as run
from hosts import STEPS, Calls, compare
from tiny_runs import ROWS, make_models
from trl_runs import only_ours, only_theirs, watch

from fastkto.errors import InputError
from fastkto.integrations import axolotl as ours

OURS = "fastkto.integrations.axolotl.KTOTrainer"
FORMAT = {"prompt_format": "Human: {prompt}\nAssistant:", "completion_format": "{completion}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and rows as the host takes them."""
    folder = tmp_path_factory.mktemp("axolotl")
    make_models(folder)
    write_rows(folder, ROWS)
    return folder


def write_rows(folder, rows):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


def write_config(folder, out, **changes):
    """The YAML of a run, a file in `out`; without a seed the host orders the rows anew in every run."""
    columns = {"field_prompt": "prompt", "field_completion": "answer", "field_label": "good"}
    settings = {
        "base_model": str(folder / "reference"),
        "plugins": ["axolotl_ahead.Ahead"],
        "rl": "kto",
        "remove_unused_columns": False,
        "rl_beta": 0.1,
        "kto_desirable_weight": 1.3,
        "kto_undesirable_weight": 0.7,
        "datasets": [
            {"path": str(folder / "rows.jsonl"), "ds_type": "json", "split": "train", "type": columns | FORMAT}
        ],
        "dataset_prepared_path": str(out / "prepared"),
        "dataset_num_proc": 1,
        "seed": 3,
        "sequence_len": 64,
        "output_dir": str(out),
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_epochs": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "tf32": False,
        "use_tensorboard": False,
    }
    out.mkdir()
    path = out / "config.yaml"
    path.write_text(yaml.safe_dump({**settings, **changes}))
    return path


def train(config):
    """The trainer after the run of a YAML."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["axolotl"])
        cfg = load_cfg(str(config))
        return run(cfg=cfg, dataset_meta=load_preference_datasets(cfg=cfg))[2]


LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "v_proj", "down_proj"],
    "learning_rate": 3e-3,
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="full"),
        pytest.param({"gradient_accumulation_steps": 2}, id="accumulation"),
        pytest.param({"lr_scheduler": "rex", "embedding_lr": 3e-4}, id="the host's scheduler and optimizer groups"),
        pytest.param(LORA, id="lora"),
    ],
)
def test_same_run_as_the_host_with_one_line_more(monkeypatch, folder, tmp_path, changes):
    calls = watch(Calls(monkeypatch))
    host = train(write_config(folder, tmp_path / "host", **changes))
    micro_steps = STEPS * changes.get("gradient_accumulation_steps", 1)
    assert type(host) is AxolotlKTOTrainer
    only_theirs(calls.since(), steps=micro_steps)
    trainer = train(write_config(folder, tmp_path / "ours", trainer_cls=OURS, **changes))
    assert type(trainer) is ours.KTOTrainer
    only_ours(calls.since(), steps=micro_steps)
    compare(trainer.state.log_history, host.state.log_history)


@pytest.mark.parametrize("line", [{}, {"trainer_cls": OURS}], ids=["host", "ours"])
def test_the_hosts_command(folder, tmp_path, line):
    no_way_back = "import trl.trainer.kto_trainer as host\nhost.selective_log_softmax = None\n"
    (tmp_path / "no_way_back.py").write_text(f"{no_way_back}from axolotl_ahead import Ahead\n")
    config = write_config(folder, tmp_path / "out", plugins=["no_way_back.Ahead"], max_steps=2, **line)
    scripts = Path(sys.executable).parent
    command = [scripts / "axolotl", "train", config]  # which finds `accelerate` in PATH
    paths = {"PYTHONPATH": [tmp_path, Path(__file__).parent], "PATH": [scripts, os.environ["PATH"]]}
    environment = os.environ | {name: os.pathsep.join(map(str, parts)) for name, parts in paths.items()}
    environment |= {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if line:
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("'kl/raw'") == 2
    else:  # without the line the host's head is what is missing now
        assert done.returncode != 0
        assert "'NoneType' object is not callable" in done.stderr


def test_the_same_line_with_a_host_of_another_method_is_refused(monkeypatch):
    monkeypatch.setattr("trl.KTOTrainer._compute_kl_logps", lambda self, batch: None)
    monkeypatch.delitem(sys.modules, ours.__name__)
    with pytest.raises(InputError, match=r"_compute_kl_logps of axolotl .*: got \('batch',\), expected"):
        importlib.import_module(ours.__name__)


def test_rows_cut_over_ranks_are_refused(monkeypatch, folder, tmp_path):
    initialised = ours.PackedKTOTrainer.__init__

    def with_context_parallelism(trainer, *args, **kwargs):
        initialised(trainer, *args, **kwargs)
        monkeypatch.setattr(trainer.accelerator.state, "parallelism_config", SimpleNamespace(cp_size=2))

    monkeypatch.setattr(ours.PackedKTOTrainer, "__init__", with_context_parallelism)
    with pytest.raises(InputError, match="context_parallel_size: got 2, expected 1"):
        train(write_config(folder, tmp_path / "ours", trainer_cls=OURS))
