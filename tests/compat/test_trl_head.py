"""`patch_trl_head`: TRL's trainers with fastkto's head, and the head itself against TRL's."""

import importlib

import pytest
import torch
from hosts import STEPS, Calls, compare, sft
from tiny import tiny_llama, tiny_tokenizer
from tiny_trainer import rows
from tolerance import assert_close

from fastkto.errors import InputError
from fastkto.integrations.trl import head as trl_head
from fastkto.integrations.trl.head import TRLHead, patch_trl_head

trl = pytest.importorskip("trl", reason="the test extra brings TRL, the host")
utils = importlib.import_module("trl.trainer.utils")
if not hasattr(utils, "add_fused_lm_head"):
    pytest.skip(f"TRL {trl.__version__} makes logits: test_trl_chunked_head.py", allow_module_level=True)
kernels = importlib.import_module("trl.kernels")
peft = importlib.import_module("peft")

OPTIONS = {
    "output_dir": "",
    "per_device_train_batch_size": 4,
    "max_steps": STEPS,
    "logging_steps": 1,
    "learning_rate": 4e-4,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


def paired():
    return rows(24).map(
        lambda row: {
            "chosen": row["completion"],
            "rejected": [{"role": "assistant", "content": row["completion"][0]["content"][::-1] + "no"}],
        },
        remove_columns=["completion", "label"],
    )


def kto(args):
    return trl.KTOTrainer(
        sft(tiny_llama(seed=1)),
        ref_model=tiny_llama(seed=1),
        args=trl.KTOConfig(**args, train_sampling_strategy="sequential"),
        train_dataset=rows(24),
        processing_class=tiny_tokenizer(),
    )


def sft_trainer(args):
    return trl.SFTTrainer(
        tiny_llama(seed=1, final_logit_softcapping=5.0),
        args=trl.SFTConfig(**args, eos_token="<|end|>"),
        train_dataset=rows(24).remove_columns("label"),
        processing_class=tiny_tokenizer(),
        peft_config=peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )


def dpo(args):
    return trl.DPOTrainer(
        sft(tiny_llama(seed=1)),
        ref_model=tiny_llama(seed=1),
        args=trl.DPOConfig(**args, use_weighting=True),
        train_dataset=paired(),
        processing_class=tiny_tokenizer(),
    )


@pytest.mark.parametrize("trainer", [kto, sft_trainer, dpo])
def test_every_trainer_stays_the_same(trainer, tmp_path, monkeypatch):
    calls, logs = Calls(monkeypatch), []
    calls.count(kernels.ChunkedLogProbFunction, "forward", static=True)
    calls.count(trl_head, "token_stats", "token_logprobs")
    for patched in (True, False):
        built = trainer(OPTIONS | {"output_dir": str(tmp_path)})  # before the patch: it holds for trainers that exist
        patch = patch_trl_head() if patched else None
        built.train()
        counts = calls.since()
        print(dict(counts))
        if patch:
            patch.unpatch()
            assert not counts["forward"]
            assert counts["token_stats"] >= STEPS
        else:
            assert not counts["token_stats"]
            assert counts["forward"] >= STEPS
        logs.append(built.state.log_history)
    compare(*logs, kl=trainer is kto)


def test_patching_is_idempotent_and_undone():
    head = utils._ChunkedLogProbFunction
    first = patch_trl_head()
    second = patch_trl_head()
    assert head.apply is TRLHead.apply
    second.unpatch()
    assert head.apply is TRLHead.apply
    first.unpatch()
    first.unpatch()
    assert head.apply == super(head, head).apply
    with pytest.raises(RuntimeError), patch_trl_head():
        raise RuntimeError
    assert head.apply == super(head, head).apply


def test_refuses_another_head(monkeypatch):
    class Other(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden, weight, targets):
            return hidden

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Other)
    with pytest.raises(
        InputError, match=r"_ChunkedLogProbFunction.forward of trl .*: got \('hidden', 'weight', 'targets'\)"
    ):
        patch_trl_head()
    assert "apply" not in vars(Other)


def test_refuses_a_head_that_zero_3_took_away():
    weight = torch.zeros(0)
    weight.ds_id = 1
    with pytest.raises(InputError, match="ZeRO-3"):
        TRLHead.apply(torch.zeros(2, 3), weight, None, torch.zeros(2, dtype=torch.int64), 1.0, 32768)


NAMES = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 4.0},
    "scale and temperature": {"scale": 0.3, "temperature": 0.7},
    "everything": {"bias": True, "softcap": 4.0, "scale": 1.7, "temperature": 1.3},
    "no entropy": {"outputs": ("log_probs", "mean_logits")},
    "log-probs alone": {"outputs": ("log_probs",)},
    "frozen": {"frozen": True},
    "bfloat16": {"dtype": torch.bfloat16, "bias": True},
    "nothing to score": {"positions": 0},
}


def call(
    apply, dtype, *, bias=False, softcap=None, scale=1.0, temperature=1.0, outputs=NAMES, frozen=False, positions=37
):
    """Results and gradients of a head on the same numbers, its log-probs and its entropy both differentiated."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias_V = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).bfloat16().to(dtype)
        for shape in ((positions, 19), (1031, 19), (1031,))
    )
    targets = torch.randint(0, 1031, (positions,), generator=generator)
    targets[::3] = (hidden @ weight.T + bias * bias_V)[::3].argmax(1)  # some of them the most likely one
    leaves = [hidden, *([] if frozen else [weight, bias_V] if bias else [weight])]
    for leaf in leaves:
        leaf.requires_grad_()
    found = apply(hidden, weight, bias_V if bias else None, targets, temperature, 128, softcap, scale, outputs)
    upstream = torch.randn(2, positions, generator=generator)
    total = (found[0] * upstream[0]).sum()
    if found[1] is not None:
        total = total + (found[1] * upstream[1]).sum()
    return found, torch.autograd.grad(total, leaves)


def oracle(hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs):
    z = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    z = z * scale
    z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
    logp = z.log_softmax(1)
    every = {
        "entropy": -(logp.exp() * logp).sum(1),
        "log_sum_sq_probs": (2 * logp).logsumexp(1),
        "mean_logits": z.mean(1),
        "is_top1": z.argmax(1) == targets,
    }
    return logp.gather(1, targets[:, None])[:, 0], *(every[name] if name in outputs else None for name in NAMES)


@pytest.mark.parametrize("case", HEADS)
def test_the_head_gives_what_trls_gives(case):
    options = {**HEADS[case]}
    dtype = options.pop("dtype", torch.float32)
    found, grads = call(TRLHead.apply, dtype, **options)
    host, host_grads = call(kernels.ChunkedLogProbFunction.apply, dtype, **options)
    exact, exact_grads = call(oracle, torch.float64, **options)
    for name, a, b, c in zip(("log-probs", *NAMES), found, host, exact, strict=True):
        assert (a is None) == (b is None), name
        if name == "is_top1" and a is not None:
            assert torch.equal(a, c)
        elif a is not None:
            assert a.dtype == b.dtype
            assert_close(a, c, b, name=name)
    for a, b, c in zip(grads, host_grads, exact_grads, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, c, b, name="gradient")


def test_entropy_takes_no_gradient_where_the_host_gives_none():
    found, _ = call(TRLHead.apply, torch.float32)
    assert [x.requires_grad for x in found] == [True, True, False, False, False]


def test_the_head_keeps_to_the_autocast_dtype():
    exact, exact_grads = call(oracle, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        found, grads = call(TRLHead.apply, torch.float32)
        host, host_grads = call(kernels.ChunkedLogProbFunction.apply, torch.float32)
    for a, b, c in zip((*found[:4], *grads), (*host[:4], *host_grads), (*exact[:4], *exact_grads), strict=True):
        assert a.dtype == b.dtype
        assert_close(a, c, b, name="under autocast")
