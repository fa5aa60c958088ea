"""`patch_trl_head` under the `KTOTrainer` of TRL 1.14, which has the chunked head as a choice."""

import importlib

import pytest
from hosts import STEPS, Calls, compare
from trl_runs import build, trl

from fastkto.integrations.trl import head as trl_head
from fastkto.integrations.trl.head import patch_trl_head

kto_trainer = importlib.import_module("trl.trainer.kto_trainer")
if not hasattr(kto_trainer, "_ChunkedLogProbFunction"):
    pytest.skip(f"KTO of TRL {trl.__version__} has no chunked head to choose", allow_module_level=True)


def test_kto_with_the_chunked_head_stays_the_same(tmp_path, monkeypatch):
    calls, logs = Calls(monkeypatch), []
    calls.count(kto_trainer._ChunkedLogProbFunction, "forward", static=True)
    calls.count(trl_head, "token_stats")
    for patched in (True, False):
        trainer = build(trl, tmp_path)
        trainer.use_liger_kernel = True  # what chooses that head; liger-kernel itself wants a GPU
        trainer._forward_redirection = kto_trainer._ForwardRedirection()
        patch = patch_trl_head() if patched else None
        trainer.train()
        counts = calls.since()
        print(dict(counts))
        assert (counts["token_stats"] >= STEPS, counts["forward"] >= STEPS) == (patched, not patched)
        if patch:
            patch.unpatch()
        logs.append(trainer.state.log_history)
    compare(*logs)
