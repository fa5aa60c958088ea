"""B9: every kind of adapter that peft has is merged to the tensors that peft gives in float64, or refused by name."""

from pathlib import Path

import peft
import pytest
import torch
from adapters import EVERY, LORA, SAMPLE, adapter_config
from merges import edit_json, edit_weights, exact_sum, save_adapter, save_base, tensors, units
from tolerance import assert_within
from transformers import MixtralConfig, MixtralForCausalLM

from fastkto.errors import InputError
from fastkto.tools.merge.merging import merge

REFUSED = {
    "prompt encoder": "P_TUNING",
    "prompt tuning": "PROMPT_TUNING",
    "prefix tuning": "PREFIX_TUNING",
    "prefix projection": "PREFIX_TUNING",
    "LLaMA adapter": "ADAPTION_PROMPT",
    "Lily": "not supported for Lily",
    "lora_bias": "the base layer has no bias",
}
KINDS = [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in EVERY)]


@pytest.mark.parametrize("name", KINDS)
def test_b9_every_kind_is_merged_or_refused(name):
    save_base()
    trained = save_adapter(adapter_config(name))
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            merge(Path("adapter"), Path("merged"))
        assert not Path("merged").exists()
        return
    merge(Path("adapter"), Path("merged"))
    base, found, exact = tensors("base"), tensors("merged"), exact_sum(trained)
    assert found.keys() == base.keys() == exact.keys()
    for key, x in exact.items():
        assert found[key].dtype == torch.bfloat16
        # PSOFT's own float32 is what is left of the last 1%
        assert_within(units(found[key], x), 0.0, absolute=1.01, name=key)
        assert torch.equal(found[key], base[key]) or not torch.equal(x, base[key].double()), key
    assert any(not torch.equal(found[key], base[key]) for key in base), "nothing was added"


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "lora_ga"},
        {"alora_invocation_tokens": [9, 10]},
        {"layer_replication": [[0, 2], [1, 2]]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_b9_a_lora_that_is_no_sum_with_its_base_is_refused(settings):
    save_base()
    save_adapter(peft.LoraConfig(**{**LORA, **settings}, task_type="CAUSAL_LM"))
    with pytest.raises(InputError, match="ADAPTER_DIR"):
        merge(Path("adapter"), Path("merged"))
    assert {path.name for path in Path().iterdir()} == {"base", "adapter"}


def test_b9_experts_of_an_older_transformers_are_merged_where_they_are_now():
    """An adapter on each expert's own weights, as it was before transformers kept the experts of a layer as one."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MixtralConfig(vocab_size=264, num_hidden_layers=1, num_local_experts=2, **sizes)
    save_base(model=MixtralForCausalLM(config))
    save_adapter()
    base = tensors("base")
    exact = {name: x.double() for name, x in base.items()}
    adapter = {}
    for name in [name for name in base if ".w1." in name or ".w2." in name or ".w3." in name]:
        rows, columns = base[name].shape
        a, b = torch.randn(4, columns), 0.1 * torch.randn(rows, 4)
        exact[name] = exact[name] + 2 * b.double() @ a.double()
        key = f"base_model.model.{name.removesuffix('.weight')}"
        adapter |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    edit_weights("adapter", lambda _: adapter)
    edit_json("adapter/adapter_config.json", target_modules=["w1", "w2", "w3"])
    merge(Path("adapter"), Path("merged"))
    found = tensors("merged")
    assert found.keys() == base.keys()
    for name, x in exact.items():
        assert_within(units(found[name], x), 0.0, absolute=1.01, name=name)
