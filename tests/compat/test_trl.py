"""`fastkto.integrations.trl.KTOTrainer` against the trainer that it extends: six training steps of each."""

import pytest
from families import family
from hosts import STEPS, Calls, compare, sft
from trl_runs import LORA, build, build_lora, only_ours, only_theirs, ours, trl, watch

from fastkto.batch import PackingCollator
from fastkto.integrations.trl import rows as trl_rows


@pytest.fixture
def calls(monkeypatch):
    return watch(Calls(monkeypatch))


CASES = {
    "full": (build, {}),
    "class weights": (build, {"desirable_weight": 1.3, "undesirable_weight": 0.7}),
    "gradient accumulation": (build, {"gradient_accumulation_steps": 2}),
    "moving reference": (build, {"sync_ref_model": True, "ref_model_sync_steps": 2}),
    "apo_zero_unpaired": (build, {"loss_type": "apo_zero_unpaired"}),
    "cut at max_length": (build, {"max_length": 40}),
    "no checkpointing": (build, {"gradient_checkpointing": False}),
    "streamed, by a worker": (build, {"streamed": True, "dataloader_num_workers": 1}),
    "new adapter": (build_lora, {"learning_rate": 3e-3}),
    "adapter passed in": (build_lora, {"passed_in": True, "learning_rate": 1e-2}),
    "adapter and head": (build_lora, {"lora": LORA | {"modules_to_save": ["lm_head"]}, "learning_rate": 3e-3}),
}


@pytest.mark.parametrize("case", CASES)
def test_kto_equals_the_host(case, tmp_path, calls):
    builder, options = CASES[case]
    logs = {}
    for library in (ours, trl):
        trainer = builder(library, tmp_path, **options)
        calls.since()
        trainer.train()
        steps = STEPS * options.get("gradient_accumulation_steps", 1)
        if library is ours:
            head = "module_token_stats" if case == "adapter and head" else "fused_linear_kto"
            only_ours(calls.since(), steps=steps, head=head)
        else:
            only_theirs(calls.since(), steps=steps)
        logs[library] = trainer.state.log_history
    compare(logs[ours], logs[trl], kl="loss_type" not in options)
    margins = [line["rewards/margins"] for line in logs[trl] if "loss" in line]
    assert abs(margins[-1] - margins[0]) > 0.01, "the learning rate moves nothing"


def test_padded_batches_equal_the_host_too(tmp_path, calls, monkeypatch):
    monkeypatch.setattr("fastkto.training.batching.why_not_packed", lambda *args, **kwargs: "this test says so")
    trainer, host = build(ours, tmp_path), build(trl, tmp_path)
    calls.since()
    trainer.train()
    only_ours(calls.since(), steps=STEPS, packed=False)
    host.train()
    compare(trainer.state.log_history, host.state.log_history)


def test_a_mixture_of_experts_equals_the_host(tmp_path, calls):
    def models():
        sizes = {"vocab_size": 264, "output_router_logits": True}
        reference, policy = (family("mixtral", spread=1.0, seed=1, **sizes) for _ in range(2))
        return sft(policy, steps=20), reference

    trainer, host = (build(library, tmp_path, models=models) for library in (ours, trl))
    calls.since()
    trainer.train()
    only_ours(calls.since(), steps=STEPS)
    host.train()
    compare(trainer.state.log_history, host.state.log_history)
    assert host.state.log_history[0]["aux_loss"] > 0


def test_a_planted_fault_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(trl_rows.TRLCollator, "__call__", paired_with_itself)
    trainer, host = build(ours, tmp_path), build(trl, tmp_path)
    trainer.train()
    host.train()
    with pytest.raises(AssertionError, match="instead of"):
        compare(trainer.state.log_history, host.state.log_history)


def paired_with_itself(collator, rows, call=trl_rows.TRLCollator.__call__):
    return call(collator, [row | {"KL_completion_ids": row["completion_ids"]} for row in rows])


def test_a_column_that_is_called_weight_weighs_nothing_there():
    rows = [{"prompt_ids": [i], "completion_ids": [9], "KL_completion_ids": [8], "label": True} for i in range(2)]
    padded = {"input_ids": None, "attention_mask": None}
    collate = trl_rows.TRLCollator(PackingCollator(None), lambda rows: padded)
    assert collate([row | {"weight": 5.0} for row in rows]).keys() == collate(rows).keys()
