"""HALOs' own `launch.main`, its KTO beside the same with fastkto's head, from a checkout: HALOS=FOLDER says where."""

import contextlib
import functools
import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_runs import ROWS, STEPS, make_models
from tolerance import assert_within
from transformers import AutoModelForCausalLM

from fastkto.errors import InputError
from fastkto.integrations import padded

if "HALOS" not in os.environ:
    pytest.skip("needs a checkout of HALOs, which is no package: HALOS=FOLDER", allow_module_level=True)
CHECKOUT = Path(os.environ["HALOS"])
PAGE = Path(__file__).parents[2] / "docs" / "halos.md"
HUMANLINE = ["humanline=true", "log_epsilon_P=-0.5", "log_epsilon_R=0.5"]


@pytest.fixture(scope="module")
def launch():
    """The host's script, after what the page puts at its top, except the last line: `halos` runs that."""
    top = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    assert "import fastkto.integrations.halos" in top.splitlines()[-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT))
        patch.chdir(CHECKOUT)
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr(AcceleratorState, "fsdp_plugin", None, raising=False)  # the host is never run without FSDP
        exec("\n".join(top.splitlines()[:-1]), {})
        yield importlib.import_module("launch")
        for name in [name for name in sys.modules if name in ("launch", "train") or name.startswith("train.")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halos")
    make_models(folder, form="<|user|>{prompt}<|end|>\n<|assistant|>{answer}<|end|>\n")
    rows = [
        {
            "type": "binary_feedback",
            "prompt_id": str(i),
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "output": [{"role": "assistant", "content": row["answer"]}],
            "label": int(row["good"]),
            "reward": 1.0,
            "split": split,
        }
        for split, offset in (("train", 0), ("test", 1000))
        for i, row in enumerate(ROWS, offset)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


class Ahead(AutoModelForCausalLM):
    """Loads `policy`, some steps ahead, where the host would load the reference once more."""

    @classmethod
    def from_pretrained(cls, path, **kwargs):
        return AutoModelForCausalLM.from_pretrained(Path(path).with_name("policy"), **kwargs)


def run(launch, folder, out, *, ours, changes):
    """Figures of every step and of the evaluation, and calls of the host's log-probs and of ours."""
    hydra = importlib.import_module("hydra")
    trainers = launch.trainers
    overrides = {
        "exp_name": out.name,
        "cache_dir": out.parent,
        "loss": "kto",
        "model": "base_model",
        "model.name_or_path": folder / "reference",
        "model.policy_dtype": "float32",
        "model.reference_dtype": "float32",
        "model.batch_size": 4,
        "model.eval_batch_size": 4,
        "model.max_length": 64,
        "model.max_prompt_length": 32,
        "model.activation_checkpointing": "false",
        "train_datasets": f"[{folder / 'rows.json'}]",
        "test_datasets": f"[{folder / 'rows.json'}]",
        "n_epochs": "null",
        "n_examples": 4 * STEPS,
        "n_eval_examples": 8,
        "lr": 1e-3,
        "minimum_log_interval_secs": -1,
        "wandb.enabled": "false",
    }
    figures, calls = [], {"host": 0, "fastkto": 0}

    def counted(function, name):
        @functools.wraps(function)  # the host is recognised by signature
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        host = trainers.KTOTrainer
        patch.setattr(trainers, "formatted_dict", lambda found: figures.append(dict(found)) or found)
        patch.setattr(host, "get_batch_logps", counted(host.get_batch_logps, "host"))
        patch.setattr(padded, "token_logprobs", counted(padded.token_logprobs, "fastkto"))
        patch.setattr(host, "policy_hf_model_class", Ahead)
        patch.setattr(trainers, "KTOTrainer", host)  # which undoes the import's replacement
        if ours:
            patch.delitem(sys.modules, "fastkto.integrations.halos", raising=False)
            importlib.import_module("fastkto.integrations.halos")
            assert trainers.KTOTrainer is not host
        with hydra.initialize_config_dir(version_base=None, config_dir=str(CHECKOUT / "config")):
            lines = [f"++{name}={value}" if "." in name else f"{name}={value}" for name, value in overrides.items()]
            config = hydra.compose("config", [*lines, *changes])
        torch.manual_seed(0)
        with contextlib.redirect_stdout(sys.stderr):
            launch.main(config)
    return figures, calls


CASES = {
    "plain": [],
    "class weights and accumulation": ["++loss.desirable_weight=1.3", "++model.gradient_accumulation_steps=2"],
    "checkpointing": ["++model.activation_checkpointing=true"],
    "humanline": HUMANLINE,
}


@pytest.mark.parametrize("case", CASES)
def test_same_run_as_the_host(launch, folder, tmp_path, case):
    theirs, host_calls = run(launch, folder, tmp_path / "host", ours=False, changes=CASES[case])
    found, our_calls = run(launch, folder, tmp_path / "ours", ours=True, changes=CASES[case])
    print(case, host_calls, our_calls, [line.get("rewards_train/KL_estimate") for line in theirs])
    assert len(found) == len(theirs) == STEPS + 1
    assert host_calls["fastkto"] == our_calls["host"] == 0
    assert our_calls["fastkto"] == host_calls["host"] >= 2 * STEPS
    for step, (mine, host) in enumerate(zip(found, theirs, strict=True)):
        assert mine.keys() == host.keys()
        for name, value in host.items():
            if "per_second" not in name:
                assert_within(mine[name], value, relative=1e-4, absolute=1e-5, name=f"{name} of line {step}")
    kl = [value for line in theirs for name, value in line.items() if name.endswith("KL_estimate")]
    assert len(kl) == STEPS + 1
    if case == "humanline":  # its reference follows the policy, one step behind
        assert kl[0] > 0.1
        assert kl[1] > 0.1
        assert any(line["rewards_train/chosen_unclamped"] < 1 for line in theirs[1:])
    else:
        assert min(kl) > 0.1, "z0 is clamped: the comparison would be vacuous"


def test_a_cache_of_other_pairs_is_refused_where_the_host_breaks(launch, folder, tmp_path):
    changes = ["cache_reference_logprobs=true"]
    with pytest.raises(KeyError):
        run(launch, folder, tmp_path / "host", ours=False, changes=changes)
    with pytest.raises(InputError, match="cache_reference_logprobs: got True, expected false: HALOs shuffles"):
        run(launch, folder, tmp_path / "ours", ours=True, changes=changes)
