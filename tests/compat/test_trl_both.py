"""`fastkto.integrations.trl.KTOTrainer` beside TRL's trainer under `patch_trl_head`: 1.15's own head wants a GPU."""

import pytest
from hosts import STEPS, Calls, compare
from trl_runs import FUSED, build, build_lora, only_ours, ours, trl, watch

from fastkto.integrations.trl import head as trl_head
from fastkto.integrations.trl.head import patch_trl_head

if not FUSED:
    pytest.skip(f"KTO of TRL {trl.__version__} makes logits, which the patch leaves alone", allow_module_level=True)


@pytest.mark.parametrize("builder", [build, build_lora])
def test_both_forms_give_the_same_training(builder, tmp_path, monkeypatch):
    calls = watch(Calls(monkeypatch))
    calls.count(trl_head, "token_stats", "token_logprobs")
    options = {"learning_rate": 3e-3} if builder is build_lora else {}
    trainer = builder(ours, tmp_path, **options)
    calls.since()
    trainer.train()
    only_ours(calls.since(), steps=STEPS)
    with patch_trl_head():
        host = builder(trl, tmp_path, **options)
        calls.since()
        host.train()
    counts = calls.since()
    print(dict(counts))
    assert counts["_compute_loss"] == STEPS
    assert counts["token_stats"] + counts["token_logprobs"] >= 4 * STEPS
    assert not counts["forward"]
    assert not counts["kto_step"]
    compare(trainer.state.log_history, host.state.log_history)
