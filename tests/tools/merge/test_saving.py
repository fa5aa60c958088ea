"""B9: the merged model's files have the base's names, dtypes and generation config."""

import json
from pathlib import Path

import pytest
import torch
from merges import edit_json, edit_weights, exact_sum, save_adapter, save_base, tensors, units
from tolerance import assert_within
from transformers import AutoModelForCausalLM, PreTrainedModel

from fastkto.tools.merge.merging import merge

SUM = 40
"""Roundings of float32 that its own sums may take, where they are then rounded no further."""


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float16, 1.01), (torch.float32, SUM)])
def test_b9_a_base_of_one_dtype_keeps_it(dtype, allowed):
    save_base(dtype)
    exact = exact_sum(save_adapter())
    assert merge(Path("adapter"), Path("merged")).dtypes == [str(dtype).removeprefix("torch.")]
    for name, x in tensors("merged").items():
        assert x.dtype == dtype
        assert_within(units(x, exact[name]), 0.0, absolute=allowed, name=name)


@pytest.mark.parametrize("parts", [False, True])
def test_b9_each_tensor_keeps_its_own_dtype(parts, monkeypatch):
    save_base(tie_word_embeddings=True)
    exact = exact_sum(save_adapter(target_modules=["q_proj", "k_proj"], modules_to_save=["lm_head"]))
    wide = ("norm", "k_proj")
    edit_weights("base", lambda x: {name: y.float() if any(w in name for w in wide) else y for name, y in x.items()})
    if parts:
        whole = PreTrainedModel.save_pretrained
        monkeypatch.setattr(
            PreTrainedModel, "save_pretrained", lambda self, folder, **_: whole(self, folder, max_shard_size="20KB")
        )
    assert merge(Path("adapter"), Path("merged")).dtypes == ["bfloat16", "float32"]
    found = tensors("merged")
    if parts:
        index = json.loads(Path("merged/model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in found.values())
    assert found.pop("lm_head.weight").dtype == torch.bfloat16, "new: of the base's usual dtype"
    assert {name: x.dtype for name, x in found.items()} == {name: x.dtype for name, x in tensors("base").items()}
    for name, x in found.items():
        allowed = SUM if x.dtype == torch.float32 else 1.01
        assert_within(units(x, exact[name]), 0.0, absolute=allowed, name=name)
    assert json.loads(Path("merged/config.json").read_text())["dtype"] == "bfloat16"


def test_b9_the_config_names_the_dtype_that_the_bases_config_names():
    save_base()
    save_adapter()
    edit_json("base/config.json", dtype="float32")
    merge(Path("adapter"), Path("merged"))
    assert json.loads(Path("merged/config.json").read_text())["dtype"] == "float32"
    assert {x.dtype for x in tensors("merged").values()} == {torch.bfloat16}


def test_b9_a_base_in_parts_is_read_whole():
    save_base()
    exact = exact_sum(save_adapter())
    AutoModelForCausalLM.from_pretrained("base").save_pretrained("base", max_shard_size="20KB")
    Path("base/model.safetensors").unlink()
    assert Path("base/model.safetensors.index.json").exists()
    merge(Path("adapter"), Path("merged"))
    assert tensors("merged").keys() == exact.keys()
    assert {x.dtype for x in tensors("merged").values()} == {torch.bfloat16}


def test_b9_the_generation_config_is_the_bases_even_where_it_could_not_be_saved():
    save_base()
    save_adapter()
    edit_json("base/generation_config.json", temperature=0.5, do_sample=False)
    merge(Path("adapter"), Path("merged"))
    assert Path("merged/generation_config.json").read_text() == Path("base/generation_config.json").read_text()


def test_b9_what_transformers_leaves_of_the_base_is_named():
    save_base()
    save_adapter()
    key = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights("base", lambda x: x | {key: torch.ones(4)})
    assert merge(Path("adapter"), Path("merged")).left_out == [key]


def test_b9_a_tied_head_that_the_bases_file_has_too_is_not_left_out():
    save_base(tie_word_embeddings=True)
    save_adapter()
    edit_weights("base", lambda x: x | {"lm_head.weight": x["model.embed_tokens.weight"].clone()})
    assert merge(Path("adapter"), Path("merged")).left_out == []
