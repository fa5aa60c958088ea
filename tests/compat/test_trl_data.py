"""`fastkto.integrations.trl.KTOTrainer`: reference on disk, evaluation, checkpoints, and what it refuses."""

import os

import pytest
import torch
from hosts import STEPS, Calls, compare, policy_and_reference
from tiny import tiny_tokenizer
from tiny_trainer import rows
from tolerance import assert_close
from transformers.utils import logging
from trl_runs import build, build_lora, config, host_ran, only_ours, ours, trl, watch

from fastkto.config import KTOConfig
from fastkto.errors import InputError
from fastkto.integrations import seams
from fastkto.integrations.seams import check
from fastkto.integrations.trl import patch_trl_head


@pytest.fixture
def calls(monkeypatch):
    return watch(Calls(monkeypatch))


def test_precomputed_reference_equals_the_host(tmp_path, calls):
    logs = {}
    for library in (ours, trl):
        trainer = build(
            library, tmp_path, precompute_ref_log_probs=True, evals=rows(10), eval_strategy="steps", eval_steps=3
        )
        counts = calls.since()
        assert counts["row_logps" if library is ours else "compute_ref_log_probs"] == 12 + 2
        assert host_ran(counts) == (library is trl)
        trainer.train()
        counts = calls.since()
        assert not counts["row_logps"], "the reference ran again"
        if library is ours:
            only_ours(counts, steps=STEPS + 2 * 2)
        logs[library] = trainer.state.log_history
    compare(logs[ours], logs[trl])


def test_evaluation_equals_the_host(tmp_path, calls):
    """Batches of three, of pairs that TRL formed in fours; the last one has a single row, paired with another's y."""
    logs, results = {}, {}
    for library in (ours, trl):
        evals = {"a": rows(10), "b": rows(8)}
        trainer = build(
            library, tmp_path, evals=evals, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=3
        )
        trainer.train()
        calls.since()
        results[library] = trainer.evaluate(rows(6))
        if library is ours:
            only_ours(calls.since(), steps=2)
        logs[library] = trainer.state.log_history
    compare(logs[ours], logs[trl])
    assert {name for name in results[trl] if not name.endswith(("runtime", "per_second"))} <= set(results[ours])


@pytest.mark.filterwarnings("ignore:`return_outputs=True`")  # TRL's own, about its second forward
def test_compute_metrics_gets_what_the_host_gives(tmp_path, calls):
    seen = {}
    for library in (ours, trl):

        def keep(prediction, library=library):
            seen[library] = prediction
            return {}

        policy, reference = policy_and_reference()
        trainer = library.KTOTrainer(
            policy, reference, config(tmp_path), None, rows(8), rows(8), tiny_tokenizer(), compute_metrics=keep
        )
        trainer.evaluate()
        trainer.predict(trainer.eval_dataset)
    assert (seen[ours].label_ids == seen[trl].label_ids).all()
    assert_close(torch.tensor(seen[ours].predictions), torch.tensor(seen[trl].predictions), name="logits")


def test_activation_offloading_holds_what_the_step_saves(tmp_path, calls, monkeypatch):
    """TRL's context needs an accelerator; one that moves saved tensors by hand stands in for it, in both."""
    kept = []

    def pack(x):
        kept.append(x)
        return x.clone()

    context = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
    monkeypatch.setattr("trl.trainer.kto_trainer.get_act_offloading_ctx_manager", lambda model: context)
    trainer, host = (build(library, tmp_path, activation_offloading=True) for library in (ours, trl))
    calls.since()
    trainer.train()
    only_ours(calls.since(), steps=STEPS)
    assert kept
    host.train()
    compare(trainer.state.log_history, host.state.log_history)


@pytest.mark.parametrize(("first", "second"), [(ours, ours), (trl, ours), (ours, trl)])
def test_a_checkpoint_of_either_resumes_in_either(first, second, tmp_path, calls):
    options = {"save_strategy": "steps", "save_steps": 3, "learning_rate": 3e-3}
    whole = build_lora(first, tmp_path, **options)
    whole.train()
    resumed = build_lora(second, tmp_path / "resumed", **options)
    calls.since()
    resumed.train(resume_from_checkpoint=os.path.join(whole.args.output_dir, "checkpoint-3"))
    if second is ours:
        only_ours(calls.since(), steps=STEPS - 3)
    later = [line for line in resumed.state.log_history if line["step"] > 3 and "loss" in line]
    expected = [line for line in whole.state.log_history if line["step"] > 3 and "loss" in line]
    for line in (*later, *expected):
        del line["num_tokens"]  # TRL counts from the resume
    if second is trl:
        expected = [{name: line[name] for name in later[0]} for line in expected]
    compare(later, expected, steps=3)


def test_callbacks_and_subclasses_find_the_hosts_methods(tmp_path):
    trainer = build(ours, tmp_path)
    assert isinstance(trainer, trl.KTOTrainer)
    batch = next(iter(trainer.get_train_dataloader()))
    host = build(trl, tmp_path)
    padded = next(iter(host.get_train_dataloader()))
    for ours_, theirs in (
        (trainer.compute_ref_log_probs(trainer.ref_model, batch), host.compute_ref_log_probs(host.ref_model, padded)),
        ((trainer._compute_kl_logps(trainer.model, batch),), (host._compute_kl_logps(host.model, padded),)),
    ):
        for a, b in zip(ours_, theirs, strict=True):
            assert_close(a, b, b, name="log-probs", condition=10)


REFUSED = {
    "a collator": ({"data_collator": list}, "data_collator: got .* expected None"),
    "a label that is no bool": (
        {"train_dataset": rows(8, desirable=lambda i: i % 2 * 2 - 1)},
        "label: got -1, expected",
    ),
    "our configuration": ({"args": KTOConfig("out")}, "args: got 'fastkto.KTOConfig', expected trl.KTOConfig"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_by_name(case, tmp_path):
    given, message = REFUSED[case]
    policy, reference = policy_and_reference()
    kwargs = {"args": config(tmp_path), "train_dataset": rows(8), "processing_class": tiny_tokenizer(), **given}
    with pytest.raises(InputError, match=message):
        ours.KTOTrainer(policy, ref_model=reference, **kwargs).train()


def test_refuses_several_gpus_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(trl.KTOConfig, "n_gpu", 2)
    with pytest.raises(ValueError, match="nn.DataParallel"):  # 1.16 says it itself
        build(ours, tmp_path)


@pytest.mark.parametrize("name", ["_is_vision_dataset", "use_liger_kernel"])
def test_refuses_what_trl_found_and_it_cannot_do(name, tmp_path):
    trainer = build(ours, tmp_path)
    trainer._model_run = None
    setattr(trainer, name, True)
    with pytest.raises(InputError, match="train_dataset|use_liger_kernel"):
        trainer._set_up()


def test_refuses_a_host_that_was_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(trl.KTOTrainer, "_compute_loss", lambda self, model, inputs: None)
    with pytest.raises(
        InputError, match=r"trl.KTOTrainer._compute_loss of trl .*: got \('model', 'inputs'\), expected"
    ):
        build(ours, tmp_path)


def test_a_newer_version_with_the_same_seams_is_taken_and_says_so(tmp_path, monkeypatch, warnings):
    monkeypatch.setattr(check, "version", lambda package: "1.99.0")
    logging.get_logger().warning_once.__func__.cache_clear()
    build(ours, tmp_path / "a")
    build(ours, tmp_path / "b")
    patch_trl_head().unpatch()
    lines = [line for line in warnings.messages if "was not run with trl 1.99.0, only with 1.9.0" in line]
    assert [line.split()[0] for line in lines] == [seams.WAYS["trl"].name, seams.WAYS["trl head"].name]
