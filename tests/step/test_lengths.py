"""A row's log-probs are that row's alone, at every length: what cannot be packed pads, what cannot be padded runs one
by one, what is right no way is refused. The right values are the stock model's, a row at a time."""

import pytest
import torch
from families import COMMON, family
from packed_steps import rows, step, step_alone
from tiny_trainer import config
from tolerance import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from fastkto.errors import InputError
from fastkto.step import lengths
from fastkto.step.lengths import Reach, lengths_of
from fastkto.training.batching import choose_collator
from fastkto.trunk import ModelRun
from fastkto.trunk.scorer import teach_scorer

DATA = rows([(5, 9), (1, 1), (14, 3), (2, 27), (3, 1), (60, 30)])
SCALED = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_parameters": SCALED | {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
    "original_max_position_embeddings": 32,
}
LLAMA4 = COMMON | {
    "head_dim": 8,
    "num_local_experts": 2,
    "intermediate_size_mlp": 48,
    "interleave_moe_layer_step": 2,
    "num_hidden_layers": 5,
    "attention_chunk_size": 4096,
}


def llama4(**changes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama4_text", **{**LLAMA4, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)
    return model


def way_of(collator):
    if hasattr(collator, "one_by_one"):
        return "one by one" if collator.one_by_one else "padded"
    return "packed"


def chosen(model, tmp_path, data=DATA, **changes):
    teach_scorer(model)
    args = config(tmp_path, **{"bf16": False, **changes})
    return choose_collator(ModelRun(model), data, args, pad_token_id=0)


MODELS = {
    "LongRoPE": (lambda: family("llama", **LONGROPE), {}, "one by one"),
    "LongRoPE asked for padded": (lambda: family("llama", **LONGROPE), {"packing": False}, "one by one"),
    "LongRoPE in bf16": (lambda: family("llama", **LONGROPE, dtype=torch.bfloat16), {}, "one by one"),
    "LongRoPE with autocast": (lambda: family("llama", **LONGROPE), {"bf16": True}, "one by one"),
    "LongRoPE with short rows": (lambda: family("llama", **LONGROPE), {"max_length": 32}, "packed"),
    "YaRN": (lambda: family("llama", rope_parameters=SCALED | {"rope_type": "yarn"}), {}, "packed"),
    "Llama 4": (llama4, {}, "packed"),
    "Llama 4, its chunks": (lambda: llama4(attention_chunk_size=40), {}, "padded"),
    "Llama 4, its temperature": (lambda: llama4(floor_scale=200), {}, "padded"),
    "Llama 4, small forwards": (lambda: llama4(floor_scale=200), {"max_tokens_per_forward": 190}, "packed"),
    "windows": (lambda: family("gemma3_text"), {}, "packed"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_way_that_is_right_at_every_length(name, tmp_path):
    """B2, B3: one row past the threshold moved every other row of the pack by up to 0.6 nats."""
    make, changes, way = MODELS[name]
    model = make()
    layers = len(model.get_decoder().layers) if hasattr(model.get_decoder(), "layers") else None
    collator = chosen(model, tmp_path, **changes)
    assert way_of(collator) == way
    assert layers is None or len(model.get_decoder().layers) == layers
    if model.dtype != torch.float32 or "bf16" in changes:
        return
    data = [row for row in DATA[-4:] if len(row["prompt_ids"]) < changes.get("max_length", 1024)]
    ours, stock = step(model, collator(data)), step_alone(model, data, changes.get("max_length"))
    exact = step_alone(model.double(), data, changes.get("max_length"))
    for field in ("loss", "kl", "z0", "rewards"):
        assert_close(getattr(ours[0], field), getattr(exact[0], field), getattr(stock[0], field), name=field)
    assert set(ours[2]) == set(stock[2])
    for weight, gradient in ours[2].items():
        assert_close(gradient, exact[2][weight], stock[2][weight], name=f"d {weight}", condition=4)


def test_what_it_costs_is_said(tmp_path, warnings):
    chosen(family("llama", **LONGROPE), tmp_path)
    (line,) = [line for line in warnings.messages if "cannot be padded" in line]
    assert "with more than 32 tokens" in line
    assert "two forwards a row" in line


@pytest.mark.parametrize("bound", ["time", "memory"])
def test_what_could_not_be_tried_is_said(bound, tmp_path, warnings, monkeypatch):
    if bound == "time":
        monkeypatch.setattr(lengths, "SECONDS", 0.0)
    else:

        def full(*_):
            raise torch.OutOfMemoryError("no memory")

        monkeypatch.setattr(lengths, "_check_history", full)
    assert way_of(chosen(family("llama", **LONGROPE), tmp_path)) == "packed"
    said = [record.getMessage() for record in warnings.records]
    assert sum("one of more than 32 tokens could not be tried in" in line for line in said) == 1


@pytest.mark.parametrize("evals", [rows([(60, 30), (3, 2)]), {"a": rows([(3, 2)]), "b": rows([(60, 30), (3, 2)])}])
def test_rows_that_are_evaluated_on_count(evals, tmp_path):
    short = rows([(5, 9), (1, 1), (14, 3), (2, 4)])
    model = family("llama", **LONGROPE)
    teach_scorer(model)
    args = config(tmp_path, bf16=False, per_device_train_batch_size=2, max_length=None)
    for given, way in ((None, "packed"), (evals, "one by one")):
        assert way_of(choose_collator(ModelRun(model), short, args, pad_token_id=0, evals=given)) == way


def test_packing_asked_for_by_name_is_refused_there(tmp_path):
    with pytest.raises(InputError, match="packing: got True.*with more than 32 tokens"):
        chosen(family("llama", **LONGROPE), tmp_path, packing=True)


def test_rows_that_depend_on_those_before_are_refused(tmp_path):
    """B2: dynamic NTK keeps the factors of the longest row so far, so even a row by itself is not itself."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    for packing in (None, False):
        model = family("llama", rope_parameters=rope, max_position_embeddings=32)
        with pytest.raises(InputError, match="^max_length: got 1024, expected at most 32: behind a longer row"):
            chosen(model, tmp_path, packing=packing)
    assert way_of(chosen(model, tmp_path, max_length=32)) == "packed"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gpt2", {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 4}),
        ("gptj", {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4}),
        (
            "opt",
            {"max_position_embeddings": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1}
            | {"num_attention_heads": 4, "word_embed_proj_dim": 32},
        ),
    ],
)
def test_rows_longer_than_the_positions_are_refused(name, settings, tmp_path):
    """B12: a bare IndexError at some step."""
    shared = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **shared, **settings))
    with pytest.raises(InputError, match="^max_length: got 1024, expected at most the 64 positions of the model. Rows"):
        chosen(model, tmp_path)
    chosen(model, tmp_path, max_length=64)
    with pytest.raises(IndexError):
        model(torch.ones(1, 65, dtype=torch.int64))


@pytest.mark.parametrize("packing", [None, False])
@pytest.mark.parametrize("way", ["its attentions say so", "its config says so", "CPM-Ant"])
def test_a_model_that_sees_later_tokens_is_refused(way, packing, tmp_path):
    """B14, B18: each log-prob saw its own token."""
    if way == "CPM-Ant":
        sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48}
        settings = AutoConfig.for_model("cpmant", **sizes, num_hidden_layers=1, prompt_length=4)
        model = AutoModelForCausalLM.from_config(settings)
    else:
        model = family("llama")
        for each in [model.config] if way == "its config says so" else [x.self_attn for x in model.model.layers]:
            each.is_causal = False
    with pytest.raises(InputError, match="^model: got 'attention in both directions'"):
        chosen(model, tmp_path, packing=packing)


def test_lengths_are_those_that_the_config_names():
    reach = Reach(100, 10_000)
    assert lengths_of(AutoConfig.for_model("llama", max_position_embeddings=64), reach) == []
    assert lengths_of(AutoConfig.for_model("llama4_text", attention_chunk_size=7), reach) == [7, 8192]
    assert lengths_of(AutoConfig.for_model("mistral", sliding_window=9), Reach(9, 9)) == []
    assert 300 in lengths_of(AutoConfig.for_model("deepseek_v32", index_topk=300), reach)
