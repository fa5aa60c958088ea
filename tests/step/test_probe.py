"""The probe: it lets right models pass, refuses others with a reason, and catches faults planted in the packed path."""

import dataclasses
import itertools

import peft
import pytest
import torch
from families import COMMON, FAMILIES, WINDOW, family
from packed_steps import rows
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from fastkto.batch import PackingCollator
from fastkto.step import probe
from fastkto.step.lengths import Reach, why_not_alone
from fastkto.step.probe import probe_rows, why_not_packed
from fastkto.trunk import ModelRun, attention, segments
from fastkto.trunk.modules import unwrap_peft
from fastkto.trunk.scorer import install_scorer

DATA = rows([(5, 9), (1, 1), (0, 4), (14, 3), (2, 30), (3, 1), (7, 22), (9, 12)])
COMPUTING = [torch.float32, torch.bfloat16]


def probed(model, data=DATA, *, kl=True, max_length=64):
    install_scorer(unwrap_peft(model))
    run, chosen = ModelRun(model), probe_rows(data)
    given = {"pad_token_id": 0, "max_length": max_length, "kl": kl}
    reach = Reach(max_length or 64, 8 * (max_length or 64))
    return why_not_packed(run, chosen, **given) or why_not_alone(
        run, chosen, PackingCollator(max_length, kl=kl), reach, **given
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_families_that_pack(name):
    assert probed(family(name)) is None


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "phi3", "mixtral"])
def test_in_bf16(name):
    assert probed(family(name, dtype=torch.bfloat16)) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert probed(family(name)) is None


def test_lora_and_modes_are_left_alone():
    model = peft.get_peft_model(family("llama").train(), peft.LoraConfig(target_modules=["q_proj"], lora_dropout=0.5))
    model.base_model.model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert probed(model) is None
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
MAMBA = {"state_size": 8, "mamba_d_state": 8}
OTHERS = {
    "mamba": (SMALL | MAMBA, "mix the sequence"),
    "jamba": (
        COMMON | MAMBA | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "num_experts": 2},
        "log-probs",
    ),
    "qwen3_next": (
        COMMON
        | {f"linear_num_{x}_heads": 2 for x in ("key", "value")}
        | {f"linear_{x}_head_dim": 8 for x in ("key", "value")}
        | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "head_dim": 8}
        | {"shared_expert_intermediate_size": 8, "layer_types": ["linear_attention", "full_attention"]},
        "mix the sequence",
    ),
    "rwkv": (SMALL | {"attention_hidden_size": 32, "context_length": 256}, "unexpected keyword argument 'packed'"),
    "gpt_oss": (
        COMMON | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": WINDOW},
        "s_aux",
    ),
    "bloom": ({"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "runs along the sequence elsewhere"),
    "gpt_neox_japanese": (COMMON, "no layers that transformers can checkpoint"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_families_that_do_not_pack(name):
    config, reason = OTHERS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **config), dtype=torch.float32)
    assert reason in probed(model)


class Smoothed(LlamaDecoderLayer):
    """A layer of somebody's own, which averages neighbours of the sequence."""

    def forward(self, hidden_states, **kwargs):
        hidden = super().forward(hidden_states, **kwargs)
        return hidden + 1e-3 * hidden.roll(1, dims=1)


class Deaf(LlamaDecoderLayer):
    """A layer that hands its attention what it knows, and nothing else."""

    def forward(self, hidden_states, position_embeddings=None, **kwargs):
        return super().forward(hidden_states, position_embeddings=position_embeddings)


class OwnAttention(LlamaAttention):
    """Attention that asks no interface."""

    def forward(self, hidden_states, **kwargs):
        q, k, v = (x(hidden_states).unflatten(-1, (-1, self.head_dim)) for x in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2)), None


class WithAttention(LlamaDecoderLayer):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.self_attn = OwnAttention(config, layer_idx)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Smoothed, "mix the sequence"),
        (Deaf, "does not get their keyword arguments"),
        (WithAttention, "mix the sequence"),
    ],
)
def test_remote_code(layer, reason):
    model = family("llama")
    torch.manual_seed(0)
    model.model.layers = torch.nn.ModuleList(layer(model.config, i) for i in range(2))
    assert reason in probed(model)


def test_prompt_learning_and_missing_weights():
    tuned = peft.get_peft_model(family("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert "virtual tokens" in probed(tuned)
    prefixed = peft.get_peft_model(
        family("llama"), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    assert "virtual tokens" in probed(prefixed)
    assert "weights are not here" in probed(family("llama").to("meta"))


def last_of_the_row_before(query, key, value, layout, rows=segments._target_rows):
    previous = None
    for q, k, v in rows(query, key, value, layout):
        extra = [] if previous is None else [x[:, :, -1:] for x in previous]
        yield (q, *(torch.cat(x, dim=2) for x in zip(extra, (k, v), strict=True))) if extra else (q, k, v)
        previous = k, v


def shifted_prompt(by):
    def kl_rows(query, own, targets, layout, rows=segments._kl_rows):
        lengths = [max(0, n + by) for n in layout.prompt_lengths]
        return rows(query, own, targets, dataclasses.replace(layout, prompt_lengths=lengths))

    return kl_rows


def another_rows_prompt(query, own, targets, layout, rows=segments._kl_rows):
    last = layout.target_lengths[-1]
    order = [*layout.target_lengths[-1:], *layout.target_lengths[:-1]]
    bounds = [0, *itertools.accumulate(order)]
    prompts = [*layout.prompt_lengths[-1:], *layout.prompt_lengths[:-1]]
    moved = tuple(torch.cat([x[:, :, -last:], x[:, :, :-last]], dim=2) for x in targets)
    return rows(query, own, moved, dataclasses.replace(layout, target_cu_seqlens=bounds, prompt_lengths=prompts))


class FromZero(PackingCollator):
    """KL rows at the positions that they have in their own completion."""

    def __call__(self, data):
        batch = super().__call__(data)
        for sequence in batch["sequences"]:
            tail = sequence["target_cu_seqlens"][-1]
            lengths = [b - a for a, b in itertools.pairwise(sequence["tail_cu_seqlens"])]
            sequence["position_ids"][0, tail:] = torch.cat([torch.arange(n) for n in lengths])
        return batch


class OffByOne(PackingCollator):
    """The first KL token predicted from the token before the last of the prompt."""

    def __call__(self, data):
        batch = super().__call__(data)
        for sequence in batch["sequences"]:
            first = sequence["KL_logit_index"] < sequence["target_cu_seqlens"][-1]
            sequence["KL_logit_index"] -= (first & (sequence["KL_logit_index"] > 0)).long()
        return batch


def wider_window(queries, keys, window, device, mask=segments._mask):
    return mask(queries, keys, None if window is None else window + 1, device)


def top_left(queries, keys, window, device, mask=segments._mask):
    return mask(keys, keys, window, device)[:queries]


FAULTS = {
    "a row sees the end of the one before": (segments, "_target_rows", last_of_the_row_before),
    "a KL row misses the end of its prompt": (segments, "_kl_rows", shifted_prompt(-1)),
    "a KL row sees a token of y": (segments, "_kl_rows", shifted_prompt(1)),
    "a KL row sees another prompt": (segments, "_kl_rows", another_rows_prompt),
    "KL positions start at 0": (probe, "PackingCollator", FromZero),
    "the prompt is off by one": (probe, "PackingCollator", OffByOne),
    "windows are ignored": (attention, "Scores", lambda scaling, dropout, window, cap: segments.Scores(scaling)),
    "windows are one too wide": (segments, "_mask", wider_window),
    "masks are aligned with the first key": (segments, "_mask", top_left),
}


@pytest.mark.parametrize("dtype", COMPUTING)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault, dtype, monkeypatch):
    monkeypatch.setattr(*FAULTS[fault])
    reason = probed(family("mistral", dtype=dtype, spread=10.0))  # else rounding to bfloat16 is more than some faults
    assert reason is not None
    assert "mix the sequence" in reason or "differ" in reason


def test_nan_is_no_agreement(monkeypatch):
    def broken(*args, attend=segments.attend):
        return attend(*args) * torch.nan

    monkeypatch.setattr(segments, "attend", broken)
    assert probed(family("llama")) is not None


@pytest.mark.parametrize(
    ("data", "kl"),
    [
        (rows([(4, 5)]), False),
        (rows([(4, 5)]), True),
        ([row | {"prompt_ids": [5, 6], "prompt_key": 1} for row in DATA], True),
        ([row | {"conversation": 0} for row in DATA], True),
        (rows([(40, 60), (30, 55), (50, 40)]), True),
        (rows([(0, 3), (0, 2)]), True),
        (rows([(1, 1)] * 3), True),
    ],
    ids=["apo", "one row", "one prompt", "one conversation", "all longer than the window", "no prompts", "tiny"],
)
def test_any_data(data, kl, monkeypatch):
    for max_length in (None, 64):
        assert probed(family("mistral"), data, kl=kl, max_length=max_length) is None
    with monkeypatch.context() as patch:
        patch.setattr(*FAULTS["windows are ignored"])
        assert "differ" in probed(family("mistral"), data, kl=kl, max_length=None)


def test_no_rows():
    assert "no rows" in probed(family("llama"), [])


def test_it_is_cheap():
    """Of a large data set it runs a few rows, none above the median length, a few times."""
    model, tokens = family("llama"), []
    model.model.register_forward_pre_hook(lambda m, args, kwargs: tokens.append(args), with_kwargs=True)
    model.model.layers[0].mlp.register_forward_pre_hook(lambda m, args: tokens.append(args[0].shape[:2].numel()))
    data = rows([(n, n) for n in range(1, 100)])
    assert probed(model, data, max_length=None) is None
    passed = sum(x for x in tokens if isinstance(x, int))
    assert passed < 2 * 5 * 4 * 100  # both streams of five forwards of four rows, padded to the median
    long = probe_rows(rows([(3000 + n, 5000) for n in range(9)]))
    assert all(len(row["prompt_ids"]) + len(row["completion_ids"]) <= 256 for row in long)


def test_running_out_of_memory_is_no_reason_to_pad(monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(segments, "attend", full)
    with pytest.raises(torch.OutOfMemoryError):
        probed(family("llama"))
