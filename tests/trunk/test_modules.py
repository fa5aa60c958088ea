"""The trunk and the head of real model families, adapters on them, and the patched forward."""

import copy
import inspect
import pickle

import peft
import pytest
import torch
import transformers
from stock_models import FAMILIES, SMALL, family
from tiny import tiny_llama
from tiny_trainer import STILL, Gradients, by_hand, logp, noisy, rows, steps, trainer
from tolerance import assert_close, assert_within

from fastkto.errors import InputError
from fastkto.trunk.modules import disable_dropout, find_head, first_non_finite
from fastkto.trunk.scorer import Scorer, check_head, install_scorer


def one_step(tmp_path, model, reference, **changes):
    """A trainer after one optimizer step that moved nothing, its log line and its gradients."""
    gradients = Gradients()
    settings = {**STILL, "max_steps": 1, "bf16": False, **changes}
    t = trainer(tmp_path, model=model, ref_model=reference, callbacks=[gradients], **settings)
    t.train()
    return t, steps(t)[0], gradients.steps[0]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_the_stock_models(name, checkpointing, tmp_path):
    policy, reference = family(name), noisy(family(name))
    wide = copy.deepcopy(policy).double(), copy.deepcopy(reference).double()
    for model in wide:
        model.config._experts_implementation = "eager"  # the default knows no float64
    same = copy.deepcopy(policy), copy.deepcopy(reference)
    mixture = {"router_aux_loss_coef": 0.0} if "router_aux_loss_coef" in FAMILIES[name] else {}
    t, line, gradients = one_step(
        tmp_path, policy, reference, beta=0.5, gradient_checkpointing=checkpointing, **mixture
    )
    results = []
    for models in (wide, same):
        models[0].train()
        loss = by_hand(*models, t.train_dataset, [range(4)], beta=0.5)
        loss.backward()
        results.append((loss, {n: p.grad for n, p in models[0].named_parameters() if p.grad is not None}))
    (exact, oracle), (torch_loss, torch_gradients) = results
    assert_close(torch.tensor(line["loss"], dtype=torch.float32), exact, torch_loss, name="loss")
    assert gradients.keys() == oracle.keys()
    for key, gradient in gradients.items():
        assert_close(gradient, oracle[key], torch_gradients[key], name=key)


def lora(**changes):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **changes})


ADAPTERS = {
    "LoRA": lora(),
    "LoRA on the head": lora(target_modules=["q_proj", "lm_head"]),
    "LoRA on embedding and head": lora(target_modules=["embed_tokens", "lm_head"]),
    "head saved whole": lora(modules_to_save=["lm_head"]),
    "DoRA": lora(use_dora=True),
    "prompt tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p-tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
    "prefix tuning": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "IA3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_trained_as_its_own_forward_says(name, tmp_path):
    """The policy is the PeftModel's own logits, the reference the base model's; every trained weight gets its share."""
    gradients = Gradients()
    settings = {**STILL, "max_steps": 1, "beta": 0.5, "gradient_checkpointing": "prefix" not in name}
    t = trainer(tmp_path, peft_config=ADAPTERS[name], callbacks=[gradients], **settings)
    with torch.no_grad():
        for index, parameter in enumerate(p for p in t.model.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    t.train()
    by_stock_forward = copy.deepcopy(t.model)
    by_stock_forward.base_model.gradient_checkpointing_disable()
    loss = by_hand(by_stock_forward, tiny_llama().eval(), t.train_dataset, [range(4)], beta=0.5)
    loss.backward()
    wide = copy.deepcopy(by_stock_forward).double()
    wide.zero_grad()
    exact = by_hand(wide, tiny_llama().double(), t.train_dataset, [range(4)], beta=0.5)
    exact.backward()
    assert_close(torch.tensor(steps(t)[0]["loss"], dtype=torch.float32), exact, loss, name="loss")
    oracle = {n: p.grad for n, p in wide.named_parameters() if p.requires_grad}
    same = {n: p.grad for n, p in by_stock_forward.named_parameters() if p.requires_grad}
    assert gradients.steps[0].keys() == oracle.keys()
    for key, gradient in gradients.steps[0].items():
        assert_close(gradient, oracle[key], same[key], name=key)
        assert gradient.any(), f"{key} gets no gradient"
    assert abs(steps(t)[0]["rewards/chosen"]) > 1e-4, "the reference would be the policy"


def test_prefix_tuning_with_checkpointing_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="^gradient_checkpointing: got True"):
        trainer(tmp_path, peft_config=ADAPTERS["prefix tuning"])


@pytest.mark.parametrize("frozen", ["lm_head", "embed_tokens", "model"])
def test_frozen_parts_get_no_gradient_and_the_others_keep_theirs(frozen, tmp_path):
    policy, reference = tiny_llama(), noisy(tiny_llama())
    _, _, everything = one_step(tmp_path, copy.deepcopy(policy), copy.deepcopy(reference))
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(frozen not in name.split("."))
    _, _, some = one_step(tmp_path, policy, reference)
    assert some.keys() == {name for name in everything if frozen not in name.split(".")}
    assert some
    for name, gradient in some.items():
        assert_close(gradient, everything[name].double(), name=name)


# The patched forward


def test_a_deep_copy_runs_its_own_weights():
    model = tiny_llama()
    install_scorer(model)
    ids = torch.arange(8, 16)[None]
    twin = noisy(copy.deepcopy(model))
    for each in (model, twin):
        scored = each(input_ids=ids, scorer=Scorer(lambda hidden, head, aux: head.module(hidden)))
        assert torch.equal(scored, each(input_ids=ids).logits)
    assert not torch.equal(model(input_ids=ids).logits, twin(input_ids=ids).logits)


def test_without_a_scorer_the_model_is_the_stock_one(tmp_path):
    t = trainer(tmp_path, gradient_checkpointing=False)
    t.train()
    stock = tiny_llama()
    stock.load_state_dict(t.model.state_dict())
    ids = torch.arange(8, 16)[None]
    assert torch.equal(stock(input_ids=ids, labels=ids).loss, t.model(input_ids=ids, labels=ids).loss)
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(stock.generate(ids, **settings), t.model.generate(ids, **settings))
    assert inspect.signature(t.model.forward) == inspect.signature(stock.forward)
    assert torch.equal(pickle.loads(pickle.dumps(t.model))(input_ids=ids).logits, stock(input_ids=ids).logits)


def test_training_goes_on_after_accelerate_has_unwrapped_the_model(tmp_path):
    t = trainer(tmp_path, bf16=True)
    t.train()
    t.accelerator.unwrap_model(t.model, keep_fp32_wrapper=False)
    assert t.train().global_step == 3


@pytest.mark.slow
def test_a_compiled_trunk_gives_the_same_loss(tmp_path):
    torch._dynamo.reset()
    lines = []
    for compile in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        t = trainer(tmp_path, max_steps=2, **compile)
        t.train()
        lines.append(steps(t))
    for ours, theirs in zip(*lines, strict=True):
        assert_within(ours["loss"], theirs["loss"], relative=1e-5, name="loss")
        assert_within(ours["grad_norm"], theirs["grad_norm"], relative=1e-4, name="grad_norm")


def test_a_hook_that_fails_leaves_the_head_as_it_was():
    model = family("Llama")
    install_scorer(model)
    ids = torch.tensor([[1, 2, 3]])
    expected = model(input_ids=ids).logits

    def fail(*_):
        raise RuntimeError("no weight here")

    hook = model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no weight here"):
        model(input_ids=ids, scorer=Scorer(lambda hidden, head, aux_loss: hidden))
    hook.remove()
    assert torch.equal(model(input_ids=ids).logits, expected)


class OddHead(transformers.LlamaForCausalLM):
    """A head that does more than its output embedding."""

    more = None

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = type(self).more(outputs.logits)
        return outputs


MORE = {
    "a scale": lambda z: z * 1.5,
    "a softcap": lambda z: 30 * torch.tanh(z / 30),
    "a bound": lambda z: z.clamp(-50, 50),
    "a bias": lambda z: z + torch.arange(z.shape[-1]) / 100,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("more", MORE)
def test_a_head_that_does_more_is_refused_though_its_logits_are_small(more, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(OddHead, "more", MORE[more])
    odd = OddHead(tiny_llama().config).to(dtype)
    assert odd(input_ids=torch.arange(4)[None]).logits.abs().max() < 5
    with pytest.raises(InputError, match="^model: got 'OddHead'"):
        trainer(tmp_path, model=odd)


def test_a_head_that_would_be_scored_wrongly_is_refused():
    bert = transformers.BertLMHeadModel(
        transformers.BertConfig(
            **SMALL, intermediate_size=64, is_decoder=True, tie_word_embeddings=False, max_position_embeddings=64
        )
    )
    install_scorer(bert)
    with pytest.raises(InputError, match="^model: got 'BertLMHeadModel'"):
        check_head(bert)
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=264, d_model=32, d_ff=64, num_layers=1, num_heads=4)
    )
    with pytest.raises(InputError, match="causal language model"):
        find_head(t5)
    with pytest.raises(InputError, match="causal language model"):
        find_head(tiny_llama().model)


def test_dropout_is_off_in_modules_and_in_attention(tmp_path):
    model = family("GPT2 (tied)", attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3).train()
    llama = tiny_llama(attention_dropout=0.5).train()
    ids = torch.arange(8, 40)[None]
    for each in (model, llama):
        assert not torch.equal(each(input_ids=ids).logits, each(input_ids=ids).logits)
        disable_dropout(each)
        assert torch.equal(each(input_ids=ids).logits, each(input_ids=ids).logits)
    t = trainer(tmp_path, model=tiny_llama(attention_dropout=0.5), peft_config=lora(lora_dropout=0.5))
    t.train()
    assert steps(t)[0]["kl/raw"] == 0.0
    t = trainer(tmp_path, model=tiny_llama(attention_dropout=0.5), disable_dropout=False)
    t.train()
    assert steps(t)[0]["kl/raw"] != 0.0


def test_first_non_finite_names_the_parameter():
    model = tiny_llama().half()
    assert first_non_finite(model) is None
    with torch.no_grad():
        model.lm_head.weight.fill_(60000.0)  # its sum overflows, it does not
        assert first_non_finite(model) is None
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("inf")
    assert first_non_finite(model) == "model.layers.1.mlp.up_proj.weight"


# Mixture of experts


def test_evaluation_figures_are_the_stock_models(tmp_path):
    policy, reference = tiny_llama(), noisy(tiny_llama())
    t = trainer(tmp_path, model=policy, ref_model=copy.deepcopy(reference), eval_dataset=rows(5), beta=0.5)
    figures = t.evaluate()
    policy.eval()
    with torch.no_grad():
        loss = by_hand(policy, reference, t.eval_dataset, [range(5)], beta=0.5)
        chosen = [row for row in t.eval_dataset if row["label"]]
        logps = [logp(policy, row["prompt_ids"], row["completion_ids"]) for row in chosen]
        base = [logp(reference, row["prompt_ids"], row["completion_ids"]) for row in chosen]
    assert_within(figures["eval_loss"], loss.item(), relative=1e-5)
    assert_within(figures["eval_logps/chosen"], torch.stack(logps).mean().item(), relative=1e-5)
    margin = 0.5 * (torch.stack(logps) - torch.stack(base)).mean().item()
    assert_within(figures["eval_rewards/chosen"], margin, absolute=1e-5)
