"""LLaMA-Factory's own KTO beside the same with fastkto's head, both through its `run_exp`, unmodified and installed."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from tiny_runs import ROWS, STEPS, assert_same_lines, count, make_models
from tolerance import assert_within
from transformers import TrainerCallback

pytest.importorskip("llamafactory", reason="runs among the host's pins: tests/compat/environments.py")

from llamafactory.train.kto import trainer as host_module
from llamafactory.train.kto import workflow
from llamafactory.train.tuner import run_exp

from fastkto.errors import InputError
from fastkto.integrations import llamafactory as ours
from fastkto.integrations import padded

HOST, OURS = host_module.CustomKTOTrainer, ours.KTOTrainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and rows as the host takes them."""
    folder = tmp_path_factory.mktemp("llamafactory")
    make_models(folder)
    write_rows(folder, ROWS)
    return folder


def write_rows(folder, rows):
    (folder / "rows.json").write_text(json.dumps(rows))
    columns = {"prompt": "prompt", "response": "answer", "kto_tag": "good"}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json", "columns": columns}}))


def arguments(folder, out, **changes):
    return {
        "stage": "kto",
        "do_train": True,
        "model_name_or_path": str(folder / "policy"),
        "ref_model": str(folder / "reference"),
        "finetuning_type": "full",
        "dataset": "rows",
        "dataset_dir": str(folder),
        "template": "default",
        "cutoff_len": 64,
        "output_dir": str(out),
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "kto_chosen_weight": 1.3,
        "kto_rejected_weight": 0.7,
        **changes,
    }


class PolicyHead(TrainerCallback):
    """Counts how often the policy's own head makes logits in training."""

    def __init__(self, patch, calls):
        self.head, self.calls, linear = None, calls, torch.nn.Linear.forward
        patch.setattr(torch.nn.Linear, "forward", lambda module, x: self.counted(linear, module, x))

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.head = model.get_output_embeddings()

    def counted(self, linear, module, x):
        self.calls["head of the policy"] += module is self.head
        return linear(module, x)


def train(monkeypatch, trainer, folder, out, **changes):
    """Log lines of the steps, and calls of the host's log-probs, of ours, and of the policy's own head."""
    calls = {"head of the policy": 0}
    with monkeypatch.context() as patch:
        patch.setattr(workflow, "CustomKTOTrainer", trainer)
        count(patch, calls, host_module, "get_batch_logps", "log-probs of the host")
        count(patch, calls, padded, "token_logprobs", "log-probs of fastkto")
        run_exp(arguments(folder, out, **changes), callbacks=[PolicyHead(patch, calls)])
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [line for line in log if "loss" in line], calls


LORA = {"finetuning_type": "lora", "ref_model": None}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="full"),
        pytest.param({"gradient_accumulation_steps": 2}, id="accumulation"),
        pytest.param({"pref_ftx": 0.5}, id="sft term"),
        pytest.param(LORA, id="lora"),
    ],
)
def test_same_run_as_the_host(monkeypatch, folder, tmp_path, changes):
    if changes is LORA:
        paths = {"model_name_or_path": str(folder / "reference"), "adapter_name_or_path": str(folder / "adapter")}
        changes = LORA | paths
    expected, host_calls = train(monkeypatch, HOST, folder, tmp_path / "host", **changes)
    found, our_calls = train(monkeypatch, OURS, folder, tmp_path / "ours", **changes)
    print(f"calls in {STEPS} steps: host {host_calls}, fastkto {our_calls}")
    streams = 4 * STEPS * changes.get("gradient_accumulation_steps", 1)  # policy and reference, targets and pairs
    of_policy = streams if "adapter_name_or_path" in changes else streams // 2  # an adapter's reference is the policy
    assert host_calls == {"log-probs of the host": streams, "log-probs of fastkto": 0, "head of the policy": of_policy}
    assert our_calls == {"log-probs of the host": 0, "log-probs of fastkto": streams, "head of the policy": 0}
    assert_same_lines(found, expected)


def test_one_command_in_place_of_the_hosts(monkeypatch, folder, tmp_path):
    expected, _ = train(monkeypatch, HOST, folder, tmp_path / "host", max_steps=1)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(arguments(folder, tmp_path / "ours", max_steps=1)))  # JSON is YAML
    command = [sys.executable, "-m", "fastkto.integrations.llamafactory", config]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "ours/trainer_state.json").read_text())["log_history"][0]
    for name in ("loss", "kl", "grad_norm"):
        assert_within(found[name], expected[0][name], relative=1e-4, name=name)


def test_the_import_replaces_the_hosts_trainer():
    assert workflow.CustomKTOTrainer is OURS
    assert issubclass(OURS, HOST)


def test_a_host_with_another_method_is_refused(monkeypatch):
    monkeypatch.setattr(workflow.CustomKTOTrainer, "forward", lambda self, model, batch: None)
    monkeypatch.delitem(sys.modules, ours.__name__)
    with pytest.raises(InputError, match=r"forward of llamafactory 0.9.5: got \('model', 'batch'\), expected"):
        importlib.import_module(ours.__name__)


def test_images_are_refused_by_name():
    with pytest.raises(InputError, match=r"batch: got \['pixel_values'\], expected text"):
        OURS.forward(None, None, {"input_ids": None, "pixel_values": torch.zeros(1)})
