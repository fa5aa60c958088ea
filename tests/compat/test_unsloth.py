"""`fastkto.integrations.trl.KTOTrainer` on the `KTOTrainer` that Unsloth writes over TRL's, beside that one itself."""

import os
import tempfile

import pytest

os.environ.setdefault("UNSLOTH_SKIP_TORCHVISION_CHECK", "1")
os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", tempfile.mkdtemp())  # else it writes trainers where it is started
pytest.importorskip("unsloth", reason="runs among the host's pins: tests/compat/environments.py")
pytest.importorskip("unsloth.models.llama", reason="writes the trainers, as `import unsloth` does where a GPU is")

import torch
import trl
from hosts import STEPS, Calls, compare, sft
from tiny import tiny_llama, tiny_tokenizer
from trl_runs import LORA, METHODS, arguments, build, only_ours, ours, watch
from unsloth import FastLanguageModel

from fastkto.cli import main

WITHIN = {"relative": 1e-3, "nats": 1e-4}  # with TRL's own trainer a tenth of it


@pytest.fixture
def calls(monkeypatch):
    return watch(Calls(monkeypatch))


def test_the_trainer_is_unsloths():
    assert trl.KTOTrainer.__name__ == "UnslothKTOTrainer"
    assert issubclass(ours.KTOTrainer, trl.KTOTrainer)


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2}, {"loss_type": "apo_zero_unpaired"}])
def test_kto_equals_the_host(tmp_path, calls, changes):
    logs = {}
    for library in (ours, trl):
        trainer = build(library, tmp_path, **{"gradient_accumulation_steps": 1, **changes})  # Unsloth's default is 2
        calls.since()
        trainer.train()
        counts = calls.since()
        if library is ours:
            only_ours(counts, steps=STEPS * changes.get("gradient_accumulation_steps", 1))
        else:
            print(dict(counts))
            assert any(counts[name] for name in METHODS)
            assert not counts["kto_step"]
        logs[library] = trainer.state.log_history
    compare(logs[ours], logs[trl], kl="loss_type" not in changes, **WITHIN)


def test_a_model_and_an_adapter_of_unsloths(tmp_path, calls):
    folder = tmp_path / "model"
    tiny_llama(seed=1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    logs = {}
    for library in (ours, trl):
        model, _ = FastLanguageModel.from_pretrained(str(folder), load_in_4bit=False, dtype=torch.float32)
        model = FastLanguageModel.get_peft_model(model, r=4, target_modules=LORA["target_modules"], random_state=3)
        trainer = library.KTOTrainer(
            model, **arguments(library, tmp_path, False, None, {"gradient_accumulation_steps": 1})
        )
        sft(trainer.model, lr=3e-2)  # now, since the reference is the adapter that was passed in
        calls.since()
        trainer.train()
        counts = calls.since()
        if library is ours:
            only_ours(counts, steps=STEPS)
        logs[library] = trainer.state.log_history
    compare(logs[ours], logs[trl], **WITHIN)


def test_doctor_knows_the_host(capsys):
    assert main(["doctor", "--host", "unsloth"]) == 0
    assert capsys.readouterr().out.startswith("OK   fastkto.integrations.trl.KTOTrainer in unsloth")
