"""Trainers of TRL on the same models and rows, with fastkto in them and without, and counts of who did the work."""

import importlib

import torch
from hosts import STEPS, policy_and_reference, sft
from tiny import tiny_llama, tiny_tokenizer
from tiny_trainer import rows

from fastkto.integrations.trl import trainer as ours

trl = importlib.import_module("trl")
peft = importlib.import_module("peft")
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
METHODS = ("_compute_kl_logps", "_compute_loss", "compute_ref_log_probs")
FUSED = hasattr(importlib.import_module("trl.trainer.kto_trainer"), "add_fused_lm_head")  # from 1.15
HEAD = "forward" if FUSED else "selective_log_softmax"  # without, it makes logits


def config(tmp_path, **changes):
    settings = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "logging_steps": 1,
        "learning_rate": 4e-4,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    return trl.KTOConfig(**{**settings, **changes})


def build(library, tmp_path, *, ref_model=True, models=policy_and_reference, streamed=False, evals=None, **changes):
    """A trainer of `library` on the same models and rows; `changes` of the configuration."""
    policy, reference = models()
    return library.KTOTrainer(
        policy, ref_model=reference if ref_model else None, **arguments(library, tmp_path, streamed, evals, changes)
    )


def build_lora(library, tmp_path, *, passed_in=False, lora=LORA, streamed=False, evals=None, **changes):
    """The same of a base model and a new adapter, or of a PeftModel whose adapter has been trained before."""
    base, kwargs = tiny_llama(seed=1), arguments(library, tmp_path, streamed, evals, changes)
    if passed_in:
        trainer = library.KTOTrainer(tuned(lora, steps=4), **kwargs)
    else:
        trainer = library.KTOTrainer(base, peft_config=peft.LoraConfig(**lora), **kwargs)
    peft.set_peft_model_state_dict(trainer.model, peft.get_peft_model_state_dict(tuned(lora, steps=12)))
    return trainer


def tuned(lora, *, steps):
    """The base model with an adapter after some steps."""
    base = tiny_llama(seed=1)
    torch.manual_seed(0)
    return sft(peft.get_peft_model(base, peft.LoraConfig(**lora)), steps=steps, lr=3e-2)


def arguments(library, tmp_path, streamed, evals, changes):
    train = rows(48)
    return {
        "args": config(tmp_path / library.__name__, **changes),
        "train_dataset": train.to_iterable_dataset() if streamed else train,
        "eval_dataset": evals,
        "processing_class": tiny_tokenizer(),
    }


def watch(calls):
    """Count the host's head and its KTO methods, and ours."""
    if HEAD == "forward":
        calls.count(importlib.import_module("trl.kernels").ChunkedLogProbFunction, HEAD, static=True)
    else:
        calls.count(importlib.import_module("trl.trainer.kto_trainer"), HEAD)
    calls.count(trl.KTOTrainer, *METHODS)
    calls.count(importlib.import_module("fastkto.trunk.scorer"), "packed_forward")
    calls.count(importlib.import_module("fastkto.trunk.run"), "_run_padded")
    calls.count(importlib.import_module("fastkto.step.micro_step"), "fused_linear_kto", "module_token_stats")
    calls.count(importlib.import_module("fastkto.step.reference"), "row_logps")
    calls.count(ours, "kto_step")
    return calls


def host_ran(counts):
    """Whether the host's head or any of its KTO methods was called."""
    return any(counts[name] for name in (HEAD, *METHODS))


def only_ours(counts, *, steps, packed=True, head="fused_linear_kto"):
    """The host's functions never ran, ours once for every micro-step."""
    print(dict(counts))
    assert not host_ran(counts)
    assert counts["kto_step"] == steps
    assert counts[head] >= steps
    assert (counts["packed_forward"] if packed else counts["_run_padded"]) >= steps


def only_theirs(counts, *, steps):
    """The counters see the host: it is not by luck that they stay at zero with ours."""
    print(dict(counts))
    assert counts["_compute_loss"] == steps
    assert counts["_compute_kl_logps"] >= steps
    assert counts[HEAD] >= steps
    assert not counts["kto_step"]
