"""Bases and adapters to merge, and what stock peft makes of them in float64."""

import copy
import json
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_llama, tiny_tokenizer
from tiny_trainer import noisy
from transformers import AutoModelForCausalLM

IDS = torch.arange(8, 108)[None]
WEIGHTS = {"base": "model.safetensors", "adapter": "adapter_model.safetensors"}


def save_base(dtype=torch.bfloat16, model=None, **config):
    """A model and its tokenizer in the folder `base`."""
    model = model or noisy(tiny_llama(attention_bias=True, **config))
    model.to(dtype).save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")


def save_adapter(config=None, rows=None, name="default", scale=0.1, **settings):
    """An adapter on `base` in the folder `adapter`, far from where it started; the model with it, in float32."""
    model = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows)
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([f"<new{i}>" for i in range(rows - len(tokenizer))])
        tokenizer.save_pretrained("adapter")
    lora = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    trained = peft.get_peft_model(model, config or peft.LoraConfig(**{**lora, **settings}), adapter_name=name)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn_like(parameter)
    trained.save_pretrained("adapter")
    torch.manual_seed(2)  # what is drawn when the adapter is loaded is drawn anew
    return trained.eval()


def logits(model, ids=IDS):
    if isinstance(model, str):
        model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        return model(ids).logits


def exact_sum(trained):
    """Every tensor of the merged model, by stock peft in float64."""
    return copy.deepcopy(trained).double().merge_and_unload().state_dict()


def tensors(folder):
    return {name: x for file in Path(folder).glob("model*.safetensors") for name, x in load_file(file).items()}


def units(found, exact):
    """The largest error in roundings of its dtype: at most one where a sum was rounded once."""
    dtype = torch.finfo(found.dtype)
    rounding = dtype.eps / 2 * (exact.abs() + dtype.tiny) + 1e-9
    return ((found.double() - exact).abs() / rounding).max().item()


def edit_weights(folder, change):
    """Put what `change` makes of the tensors in the folder's file in their place."""
    file = Path(folder) / WEIGHTS[folder]
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def edit_json(file, **changes):
    path = Path(file)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
