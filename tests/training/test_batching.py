"""The choice between packed and padded, on a model and rows as the trainer hands them over."""

import logging

import pytest
import torch
from families import family
from packed_steps import rows
from tiny_trainer import config, trainer
from transformers import MambaConfig, MambaForCausalLM

from fastkto.batch import PackingCollator, PaddingCollator
from fastkto.errors import InputError
from fastkto.step import probe
from fastkto.training import batching
from fastkto.training.batching import LOOKED_AT, choose_collator
from fastkto.trunk import ModelRun
from fastkto.trunk.scorer import install_scorer

DATA = rows([(5, 9), (1, 1), (14, 3), (2, 30), (3, 1)])


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(batching.logger, "handlers", [])
    caplog.set_level("WARNING")
    return lambda: [record.getMessage() for record in caplog.records]


def mamba():
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=264, hidden_size=32, num_hidden_layers=1, state_size=8))


def chosen(model, tmp_path, data=DATA, **changes):
    install_scorer(model)
    return choose_collator(ModelRun(model), data, config(tmp_path, **{"bf16": False, **changes}), pad_token_id=0)


def test_packed_where_the_model_allows_it(tmp_path, warnings):
    collator = chosen(family("llama"), tmp_path, max_length=50, max_tokens_per_forward=80)
    assert type(collator) is PackingCollator
    assert (collator.max_length, collator.max_tokens, collator.kl) == (50, 80, True)
    assert not chosen(family("llama"), tmp_path, loss_type="apo_zero_unpaired", packing=True).kl
    assert not warnings()


def test_compiling_is_for_padded_batches(tmp_path, warnings):
    changes = {"torch_compile": True, "torch_compile_backend": "eager"}
    assert type(chosen(family("llama"), tmp_path, **changes)) is PackingCollator
    assert sum("packing=False compiles padded ones" in warning for warning in warnings()) == 1
    chosen(family("llama"), tmp_path, packing=False, **changes)
    assert sum("packing=False compiles padded ones" in warning for warning in warnings()) == 1


def test_padded_where_it_does_not_and_why(tmp_path, warnings):
    collator = chosen(mamba(), tmp_path, max_length=50, pad_to_multiple_of=8)
    assert type(collator) is PaddingCollator
    assert (collator.max_length, collator.pad_to_multiple_of, collator.kl) == (50, 8, True)
    (warning,) = [text for text in warnings() if "padded" in text]  # not what mamba says of its own kernels
    assert "This model cannot be packed: a row's log-probs change with the tokens of another row" in warning


def test_packing_asked_for_by_name_is_no_suggestion(tmp_path):
    with pytest.raises(InputError, match="packing: got True.*mix the sequence.*Leave packing unset"):
        chosen(mamba(), tmp_path, packing=True)


def test_padded_asked_for_by_name_tries_nothing(tmp_path, monkeypatch):
    monkeypatch.delattr(batching, "why_not_packed")
    assert type(chosen(family("llama"), tmp_path, packing=False)) is PaddingCollator


def test_a_stream_is_not_read_to_its_end(tmp_path):
    taken = []

    def stream():
        for i in range(10 * LOOKED_AT):
            taken.append(i)
            yield DATA[i % len(DATA)]

    assert type(chosen(family("llama"), tmp_path, stream())) is PackingCollator
    assert len(taken) == LOOKED_AT


def test_tried_in_the_precision_of_training(tmp_path, monkeypatch):
    seen = []

    def look(*args, **kwargs):
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return probe.why_not_packed(*args, **kwargs)

    monkeypatch.setattr(batching, "why_not_packed", look)
    for changes in ({"bf16": True}, {}):
        assert type(chosen(family("qwen3"), tmp_path, **changes)) is PackingCollator
    assert seen == [torch.bfloat16, None]


def test_ranks_choose_alike(tmp_path, monkeypatch):
    """One rank's refusal is everybody's: packed and padded ranks would wait for each other's collectives."""

    def gather(into, mine):
        into[:] = [mine, "of another rank"]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert type(chosen(family("llama"), tmp_path)) is PaddingCollator
    with pytest.raises(InputError, match="of another rank"):
        chosen(family("llama"), tmp_path, packing=True)


def test_a_trainer_on_a_recurrent_model_trains_padded(tmp_path):
    t = trainer(tmp_path, model=mamba(), max_steps=1)
    assert type(t.data_collator) is PaddingCollator
    t.train()
    assert t.state.global_step == 1
