"""What one process computes from the rows of several ranks, in float64, and whether theirs is that."""

import peft
import torch
from rank_cases import CASES, LORA, TAKEN_APART, model, rows_of
from tiny import tiny_llama
from tiny_trainer import STILL, by_hand, trainer

RELATIVE = 1e-5


def compare(folder, world, case, tmp_path):
    """Loss and every gradient of every optimizer step of all ranks against one process on the same rows."""
    found = [torch.load(folder / f"{case}-{rank}.pt", weights_only=False) for rank in range(world)]
    tokens, policy, reference = expected(tmp_path, case, found[0])
    _, settings = (CASES | TAKEN_APART)[case]
    assert all(rank["packed"] == settings.get("packing", True) for rank in found)
    accumulation = settings.get("gradient_accumulation_steps", 1)
    batches = micro_steps(len(tokens), world)
    groups = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    assert len(found[0]["steps"]) == len(groups)
    for step, group in enumerate(groups):
        total = sum(len(batch) for micro in group for batch in micro)
        policy.zero_grad()
        loss = 0.0
        for micro in group:
            part = by_hand(policy, reference, tokens, micro, beta=0.5, weights=(1.5, 1.0), shared_z0=True)
            part = part * sum(map(len, micro)) / total
            part.backward()
            loss += part.item()
        exact = {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}
        for rank in found:
            assert rank["steps"][step]["loss"] == found[0]["steps"][step]["loss"]
            assert abs(rank["steps"][step]["loss"] - loss) <= RELATIVE * abs(loss)
            assert rank["gradients"][step].keys() == exact.keys()
            for name, gradient in rank["gradients"][step].items():
                close(gradient, exact[name], f"step {step}: {name}")


def expected(folder, case, found):
    """Token ids, policy and reference in float64."""
    data, settings = (CASES | TAKEN_APART)[case]
    tokens = trainer(folder, train_dataset=rows_of(data), per_device_train_batch_size=4, **STILL).train_dataset
    adapter = settings.get("adapter", False)
    policy, reference = model(adapter=adapter), model(adapter=adapter)
    if settings.get("peft"):
        policy = peft.get_peft_model(policy, peft.LoraConfig(**LORA))
        assert not policy.load_state_dict(found["adapter"], strict=False).unexpected_keys
    if "reference" not in settings and not settings.get("precompute_ref_log_probs"):
        reference = tiny_llama()
    return tokens, policy.double(), reference.double()


def micro_steps(rows, world, size=4):
    """Row numbers of every rank's batch in every micro-step; the sampler completes the last one from the beginning."""
    count = -(-rows // (size * world)) * size * world
    order = [i % rows for i in range(count)]
    batches = [order[i : i + size] for i in range(0, count, size)]
    return [batches[i : i + world] for i in range(0, len(batches), world)]


def close(a, b, name):
    """To `RELATIVE` of the largest."""
    scale = b.abs().max().item()
    assert (a.double() - b.double()).abs().max().item() <= RELATIVE * max(scale, 1e-6), name
