"""ms-swift's own KTO beside the same with fastkto's head, both through its `rlhf_main`, unmodified and installed."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ROWS, STEPS, assert_same_lines, count, make_models

pytest.importorskip("swift", reason="runs among the host's pins: tests/compat/environments.py")

os.environ |= {"USE_HF": "1", "HF_HUB_OFFLINE": "1"}  # the host's own hub is asked, and waited for, even for a folder

from swift.pipelines import rlhf_main
from swift.rlhf_trainers import kto_trainer as host_module
from swift.rlhf_trainers import rlhf_mixin
from swift.trainers import TrainerFactory

from fastkto.errors import InputError
from fastkto.integrations import padded
from fastkto.integrations import swift as ours

HOST, OURS = "swift.rlhf_trainers.KTOTrainer", "fastkto.integrations.swift.KTOTrainer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and rows as the host takes them."""
    folder = tmp_path_factory.mktemp("swift")
    make_models(folder, form="{prompt}{answer}")
    write_rows(folder, ROWS)
    return folder


def write_rows(folder, rows):
    lines = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["answer"]},
            ],
            "label": row["good"],
        }
        for row in rows
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))


def arguments(folder, out, **changes):
    settings = {
        "rlhf_type": "kto",
        "model": folder / "policy",
        "ref_model": folder / "reference",
        "model_type": "llama",
        "template": "dummy",
        "tuner_type": "full",
        "torch_dtype": "float32",
        "dataset": folder / "rows.jsonl",
        "split_dataset_ratio": 0,
        "load_from_cache_file": "false",
        "output_dir": out,
        "add_version": "false",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": "true",
        "desirable_weight": 1.3,
        "undesirable_weight": 0.7,
        **changes,
    }
    return [str(part) for name, value in settings.items() if value is not None for part in (f"--{name}", value)]


def lines_of(out):
    lines = [json.loads(line) for line in (out / "logging.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def train(monkeypatch, trainer, folder, out, **changes):
    """Log lines of the steps, and calls of the host's log-softmax and of our log-probs."""
    calls: dict[str, int] = {}
    with monkeypatch.context() as patch:
        patch.setitem(TrainerFactory.TRAINER_MAPPING, "kto", trainer)
        count(patch, calls, rlhf_mixin, "selective_log_softmax", "log-probs of the host")
        count(patch, calls, padded, "token_logprobs", "log-probs of fastkto")
        rlhf_main(arguments(folder, out, **changes))
    return lines_of(out), calls


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="full"),
        pytest.param({"gradient_accumulation_steps": 2}, id="accumulation"),
        pytest.param({"loss_type": "apo_zero_unpaired"}, id="apo_zero_unpaired"),
        pytest.param({"tuner_type": "lora", "ref_model": None}, id="lora"),
    ],
)
def test_same_run_as_the_host(monkeypatch, folder, tmp_path, changes):
    if changes.get("tuner_type") == "lora":
        changes = changes | {"model": folder / "reference", "adapters": folder / "adapter"}
    expected, host_calls = train(monkeypatch, HOST, folder, tmp_path / "host", **changes)
    found, our_calls = train(monkeypatch, OURS, folder, tmp_path / "ours", **changes)
    print(f"calls in {STEPS} steps: host {host_calls}, fastkto {our_calls}")
    kl = changes.get("loss_type") is None
    streams = (4 if kl else 2) * STEPS * changes.get("gradient_accumulation_steps", 1)
    assert host_calls == {"log-probs of the host": streams, "log-probs of fastkto": 0}
    assert our_calls == {"log-probs of the host": 0, "log-probs of fastkto": streams}
    assert_same_lines(found, expected, kl=kl)


def test_the_hosts_command_with_a_plugin_of_one_line(monkeypatch, folder, tmp_path):
    expected, _ = train(monkeypatch, HOST, folder, tmp_path / "host", max_steps=2)
    plugin = tmp_path / "plugin.py"
    no_way_back = "from swift.rlhf_trainers import rlhf_mixin; rlhf_mixin.selective_log_softmax = None\n"
    plugin.write_text(f"import fastkto.integrations.swift\n{no_way_back}")
    command = [Path(sys.executable).with_name("swift"), "rlhf"]
    command += arguments(folder, tmp_path / "ours", max_steps=2, external_plugins=plugin)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same_lines(lines_of(tmp_path / "ours"), expected, steps=2)


def test_the_import_replaces_the_hosts_trainer():
    assert TrainerFactory.TRAINER_MAPPING["kto"] == OURS
    assert issubclass(ours.KTOTrainer, host_module.KTOTrainer)


def test_a_host_with_another_method_is_refused(monkeypatch):
    monkeypatch.setattr(host_module.KTOTrainer, "_get_model_kwargs", lambda self, inputs: None)
    monkeypatch.delitem(sys.modules, ours.__name__)
    with pytest.raises(InputError, match=r"_get_model_kwargs of ms-swift 4.6.0: got \('inputs',\), expected"):
        importlib.import_module(ours.__name__)
