"""The split of every layer: what it gives, in every mode of training, and what it leaves behind."""

import copy
from functools import partial

import peft
import pytest
import torch
from families import COMMON, family
from packed_steps import LENGTHS, assert_identical, assert_same_step, checkpointed, packed, rows, step, step_alone
from tolerance import assert_close
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from fastkto.batch import Layout, PaddingCollator
from fastkto.step.micro_step import row_logps
from fastkto.trunk import ModelRun
from fastkto.trunk.scorer import install_scorer


def lora(model):
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config).get_base_model()


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_bf16_autocast(name, checkpointing, kind):
    """As near to float64 as the padded model is under the same autocast."""
    model = family(name, spread=1.0).train()
    model = lora(model) if kind == "lora" else model
    if checkpointing:
        checkpointed(model)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = step(model, packed()), step(model, PaddingCollator(0, None)(rows(LENGTHS)))
    exact = step_alone(model.double(), rows(LENGTHS), None)
    assert_close(ours[0].rewards, exact[0].rewards, theirs[0].rewards, name="rewards")
    assert ours[2].keys() == theirs[2].keys()
    gradients = [torch.cat([x[2][name].flatten().double() for name in ours[2]]) for x in (ours, exact, theirs)]
    ours, exact, theirs = (x.float() for x in gradients)
    assert_close(ours, exact, theirs, name="gradient")


DROPOUT = {"gpt2": {"resid_pdrop": 0.2, "embd_pdrop": 0.1, "attn_pdrop": 0.3}, "llama": {"attention_dropout": 0.3}}


@pytest.mark.parametrize("name", DROPOUT)
def test_the_recompute_draws_the_same_masks(name):
    model = family(name, **DROPOUT[name]).train()
    again = checkpointed(copy.deepcopy(model))

    def seeded(model, seed):
        install_scorer(model)
        run = ModelRun(model)
        model.zero_grad()
        torch.manual_seed(seed)
        logps, kl_logps = row_logps(run, packed(), graph=True)
        logps.square().sum().backward()
        return logps, kl_logps, [parameter.grad for parameter in model.parameters()]

    first, second, other = seeded(model, 1), seeded(again, 1), seeded(model, 2)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    for (parameter, _), a, b in zip(again.named_parameters(), first[2], second[2], strict=True):
        assert torch.equal(a, b), parameter


def test_the_models_own_checkpointing_function_runs_with_its_options():
    """transformers puts its activation offloading there."""
    model, calls = checkpointed(family("qwen3")), []

    def offloading(function, *args, **options):
        calls.append(options)
        with torch.autograd.graph.save_on_cpu():
            return checkpoint(function, *args, **options)

    asked = partial(offloading, use_reentrant=True, preserve_rng_state=False)
    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=asked)
    ours = step(model, packed())
    assert calls == [{"use_reentrant": False, "preserve_rng_state": False}] * len(model.model.layers)
    assert_identical(ours, step(family("qwen3").train(), packed()))


def test_layers_that_fsdp_wrapped_to_be_checkpointed():
    """`fsdp_activation_checkpointing`, which puts torch's wrapper around each layer."""
    model, runs = family("qwen3").train(), []
    plain = step(model, packed())
    layers = model.model.layers
    for i, layer in enumerate(layers):
        layer.mlp.register_forward_pre_hook(lambda *_, i=i: runs.append(i))
        layers[i] = checkpoint_wrapper(layer, preserve_rng_state=False)
    ours = step(model, packed())
    count = len(layers)
    both_parts = [i for i in range(count) for _ in range(2)]
    assert runs == both_parts * 2 + list(range(count))[::-1]  # the reference, the policy, once more in the backward
    names = {name: name.replace("_checkpoint_wrapped_module.", "") for name in ours[2]}
    assert_identical((*ours[:2], {names[name]: x for name, x in ours[2].items()}), plain)
    assert all("forward" not in vars(layer) for layer in layers)


@pytest.mark.parametrize("ask", ["reentrant", "offloaded", "evaluating"])
def test_other_ways_to_the_same_gradients(ask):
    model = family("qwen3")
    plain = step(model.train(), packed())
    if ask == "reentrant":
        ours = step(checkpointed(model, use_reentrant=True), packed())
    elif ask == "offloaded":
        with torch.autograd.graph.save_on_cpu():
            ours = step(checkpointed(model), packed())
    else:
        ours = step(model.eval(), packed())
    assert_identical(ours, plain)


def test_lora_under_checkpointing():
    assert_same_step(lora(checkpointed(family("llama"))), LENGTHS)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_kl_tokens_reach_neither_gradient_nor_auxiliary_loss(name):
    """With other KL completions and the same k."""
    model = checkpointed(family(name))
    batch, other = packed(), packed()
    sequence = other["sequences"][0]
    tail = slice(Layout.of(sequence).target_tokens, None)
    sequence["input_ids"][:, tail] = 3 + (sequence["input_ids"][:, tail] + 17) % 60
    router = name == "mixtral"
    ours, theirs = (step(model, x, router=router) for x in (batch, other))
    assert torch.equal(ours[0].rewards, theirs[0].rewards)
    assert_close(ours[0].loss, theirs[0].loss)
    if router:
        assert torch.equal(ours[1], theirs[1])
    for parameter, grad in ours[2].items():
        assert_close(grad, theirs[2][parameter], condition=10, name=parameter)


def test_forwards_may_wait_for_their_backward():
    """Two batches in flight, backward in the other order, another batch scored without a graph in between."""
    model = checkpointed(family("llama"))
    install_scorer(model)
    run = ModelRun(model)
    batches = [packed(LENGTHS[:3]), packed(LENGTHS[3:])]

    def gradients(run):
        model.zero_grad()
        run()
        return [parameter.grad.clone() for parameter in model.parameters()]

    def one_by_one():
        for batch in reversed(batches):
            row_logps(run, batch, graph=True)[0].sum().backward()

    def together():
        sums = [row_logps(run, batch, graph=True)[0].sum() for batch in batches]
        row_logps(run, packed())
        for total in reversed(sums):
            total.backward()

    for a, b in zip(gradients(one_by_one), gradients(together), strict=True):
        assert torch.equal(a, b)


def test_every_mode_computes_the_same_shapes():
    """So that a policy that equals its reference scores bitwise the same, whatever kernel a shape selects."""
    model = family("llama")
    install_scorer(model)
    shapes, batch = [], packed()
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    seen = []
    for training in (True, False):
        for graph in (True, False):
            row_logps(ModelRun(model.train(training)), batch, graph=graph)
            seen.append(shapes[:])
            shapes.clear()
    layout = Layout.of(batch["sequences"][0])
    assert seen == [[(1, layout.target_tokens, 32), (1, layout.kl_tokens, 32)] * 2] * 4


def test_no_graph_keeps_kl_rows_in_memory():
    """With checkpointing a layer keeps its input: that of the targets alone."""
    batch = packed()
    layout = Layout.of(batch["sequences"][0])
    whole = (layout.target_tokens + layout.kl_tokens) * COMMON["hidden_size"] * 4
    kept = {}
    for layers in (2, 5):
        model = checkpointed(family("llama", num_hidden_layers=layers))
        install_scorer(model)
        sizes = []

        def keep(x, sizes=sizes):
            sizes.append(x.untyped_storage().nbytes())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            row_logps(ModelRun(model), batch, graph=True)
        kept[layers] = sum(size == whole for size in sizes)
        assert sizes.count(layout.target_tokens * COMMON["hidden_size"] * 4) >= layers - 1
    assert kept[2] == kept[5]


def test_hooks_on_a_layers_output_fire():
    """Sharded training gathers a layer's weights for the backward from such a hook."""
    model = checkpointed(family("llama", num_hidden_layers=3))
    fired = []

    def watch(i, out):
        if out.requires_grad:
            out.register_hook(lambda grad: fired.append(i))

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda m, args, out, i=i: watch(i, out))
    plain = step(checkpointed(family("llama", num_hidden_layers=3)), packed())
    ours = step(model, packed())
    assert fired == [2, 1, 0]
    for name, grad in ours[2].items():
        assert_close(grad, plain[2][name], name=name)
