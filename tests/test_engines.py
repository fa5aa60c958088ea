"""What sharding engines ask of a step and of a model, as far as one process can show it."""

import pytest
import torch
from tiny import tiny_llama, tiny_tokenizer
from tiny_trainer import noisy, rows, trainer
from tolerance import assert_close

from fastkto import engines
from fastkto.errors import InputError


def forwards_of(model):
    """Counts the model's forwards with a graph and without."""
    counts = {True: 0, False: 0}

    def count(*_):
        counts[torch.is_grad_enabled()] += 1

    model.register_forward_pre_hook(count)
    return counts


def step(t, batch, forwards=0):
    """One in which the ranks have agreed on so many forwards."""
    own = t.reference
    t.reference = lambda batch: own(batch)._replace(forwards=forwards)
    t.model.zero_grad()
    loss = t.compute_loss(t.model, dict(batch))
    loss.backward()
    t.reference = own
    return loss.detach(), [p.grad.clone() for p in t.model.parameters()]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("max_tokens", [None, 90])
def test_extra_forwards_for_other_ranks_add_nothing(packing, max_tokens, tmp_path):
    t = trainer(tmp_path, packing=packing, max_tokens_per_forward=max_tokens, ref_model=noisy(tiny_llama()))
    batch = t.data_collator([t.train_dataset[i] for i in range(8)])
    counts = forwards_of(t.model)
    loss, gradients = step(t, batch)
    alone = dict(counts)
    assert (alone[True] == 1) == (max_tokens is None)
    again, with_extra = step(t, batch, forwards=6)
    assert counts[True] - alone[True] == 6
    assert_close(again, loss.double(), loss)
    for ours, plain in zip(with_extra, gradients, strict=True):
        assert_close(ours, plain.double(), plain)


def test_the_reference_runs_for_a_rank_that_misses_it_and_keeps_what_is_cached(tmp_path, monkeypatch):
    t = trainer(tmp_path, precompute_ref_log_probs=True, ref_model=noisy(tiny_llama()))
    batch = next(iter(t.get_train_dataloader()))
    cached = t.reference(batch)
    counts, puts = forwards_of(t.reference.model), []
    monkeypatch.setattr(t.reference.cache, "put", lambda *put: puts.append(put))
    monkeypatch.setattr(t.reference, "_agrees", True)
    for missing_elsewhere in (True, False):
        monkeypatch.setattr(t.reference, "_agree", lambda own, missing, other=missing_elsewhere: (3, other))
        found = t.reference(batch)
        assert torch.equal(found.logps, cached.logps)
        assert torch.equal(found.kl_logps, cached.kl_logps)
        assert found.forwards == 3
        assert counts[False] == 3, "only where one of the ranks misses it"
    assert not puts


def test_a_moving_reference_is_refused_where_weights_are_sharded(tmp_path, monkeypatch):
    monkeypatch.setattr("fastkto.training.assemble.shards", lambda accelerator: True)
    with pytest.raises(InputError, match="^sync_ref_model: got True, expected False with weights that are sharded"):
        trainer(tmp_path, sync_ref_model=True)
    assert not (tmp_path / "out").exists()


def test_the_reference_of_a_policy_taken_apart_is_loaded_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("fastkto.training.loading.partitioned", lambda model: True)
    with pytest.raises(InputError, match="^ref_model: got None, expected a model: a policy taken apart by ZeRO-3"):
        trainer(tmp_path)
    tiny_llama().save_pretrained(tmp_path / "model")
    t = trainer(tmp_path, model=str(tmp_path / "model"))
    for ours, theirs in zip(t.reference.model.parameters(), t.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs
        assert not ours.requires_grad


class Part(torch.nn.Parameter):
    """A weight as ZeRO-3 leaves it: nothing here, its shape and its part of it beside it."""

    @classmethod
    def of(cls, weight, part):
        self = cls(weight.new_empty(0))
        self.ds_id, self.ds_shape, self.ds_tensor = 0, weight.shape, part
        return self


def taken_apart(part):
    model = tiny_llama()
    for module in model.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            setattr(module, name, Part.of(parameter.data, part))
    return model


def test_a_model_taken_apart_keeps_its_vocabulary_and_its_part_is_checked(tmp_path):
    model = taken_apart(torch.ones(3))
    assert engines.partitioned(model)
    assert not engines.absent(model)
    assert engines.whole_shape(model.get_input_embeddings().weight) == (264, 32)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<one too many>"])
    with pytest.raises(InputError, match="^processing_class: got 265, expected at most the model's 264 tokens"):
        trainer(tmp_path, model=model, processing_class=tokenizer)
    with pytest.raises(InputError, match="holds NaN or inf"):
        trainer(tmp_path, model=taken_apart(torch.tensor([1.0, torch.nan])), train_dataset=rows())


def test_weights_of_another_rank_are_not_here_and_not_broken(tmp_path):
    with torch.device("meta"):
        model = tiny_llama()
    assert engines.absent(model)
    assert not engines.partitioned(model)
