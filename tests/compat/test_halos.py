"""The override for HALOs on a trainer with its signatures. `test_halos_checkout.py` runs the host itself."""

import contextlib
import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from families import family
from tolerance import assert_close

from fastkto.errors import InputError


class Trainer:
    """What the host's `KTOTrainer` does between a batch and its log-probs."""

    def __init__(self, policy, reference_model, *, cached=False):
        self.policy, self.reference_model = policy, reference_model
        self.config = SimpleNamespace(cache_reference_logprobs=cached)
        self.accelerator = SimpleNamespace(autocast=contextlib.nullcontext)
        self.prepare_accelerator()

    def prepare_accelerator(self):
        self.prepared = True

    def get_batch_logps(self, logits, labels):
        scored = labels[:, 1:] != -100
        index = labels[:, 1:].masked_fill(~scored, 0)[..., None]
        wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
        return wide.log_softmax(-1).gather(2, index)[..., 0] * scored

    def get_batch_metrics(self, batch, mode="train"):
        self.forward(self.policy, batch)
        self.forward(self.reference_model, batch, use_cache=self.config.cache_reference_logprobs)

    def forward(self, model, batch, use_cache=False):
        def logps(stream):
            ids, mask = batch[f"{stream}_combined_input_ids"], batch[f"{stream}_combined_attention_mask"]
            return self.get_batch_logps(model(ids, attention_mask=mask).logits, batch[f"{stream}_labels"])

        with torch.no_grad():
            kl = logps("KL")
        target = logps("target")
        chosen = torch.tensor([status == "chosen" for status in batch["status"]])
        return target[chosen], target[~chosen], kl


@pytest.fixture
def halos(monkeypatch):
    def load(trainer):
        package, trainers = ModuleType("train"), ModuleType("train.trainers")
        package.trainers, trainers.KTOTrainer = trainers, trainer
        monkeypatch.setitem(sys.modules, "train", package)
        monkeypatch.setitem(sys.modules, "train.trainers", trainers)
        monkeypatch.delitem(sys.modules, "fastkto.integrations.halos", raising=False)
        importlib.import_module("fastkto.integrations.halos")
        return trainers

    yield load
    sys.modules.pop("fastkto.integrations.halos", None)


def batch():
    torch.manual_seed(2)
    streams = {}
    for stream in ("target", "KL"):
        ids = torch.randint(3, 64, (4, 9))
        labels = ids.clone()
        labels[:, :3], labels[1, 7:] = -100, -100
        mask = torch.ones_like(ids)
        mask[1, 7:] = 0
        names = ("combined_input_ids", "combined_attention_mask", "labels")
        streams |= {f"{stream}_{name}": x for name, x in zip(names, (ids, mask, labels), strict=True)}
    return streams | {"status": ["chosen", "rejected", "rejected", "chosen"]}


@pytest.mark.parametrize("status", [["chosen", "rejected", "rejected", "chosen"], ["rejected"] * 4])
def test_same_log_probs_and_gradients_as_the_host(halos, status):
    rows, models = batch() | {"status": status}, {}
    for name, dtype in (("host", torch.float32), ("exact", torch.float64), ("ours", torch.float32)):
        models[name] = family("llama", dtype=torch.float32).to(dtype)
    results = {name: Trainer(models[name], None).forward(models[name], rows) for name in ("host", "exact")}
    trainers = halos(Trainer)
    assert trainers.KTOTrainer is not Trainer
    ours = trainers.KTOTrainer(models["ours"], family("llama"))
    assert ours.prepared
    ours.get_batch_logps = None  # the host's own log-probs would fail
    results["ours"] = ours.forward(models["ours"], rows)
    assert not results["ours"][2].requires_grad
    for i, name in enumerate(("chosen", "rejected", "KL")):
        assert_close(results["ours"][i], results["exact"][i], results["host"][i], name=name)
    for name, (chosen, rejected, _) in results.items():
        (rejected.sum() - 2 * chosen.sum()).backward()
        models[name] = dict(models[name].named_parameters())
    for name, parameter in models["ours"].items():
        assert_close(parameter.grad, models["exact"][name].grad, models["host"][name].grad, name=name)


def test_a_trainer_of_another_interface_is_refused(halos):
    class Other(Trainer):
        def forward(self, model, batch, prefix):
            return ()

    with pytest.raises(InputError, match=r"KTOTrainer.forward: got \('model', 'batch', 'prefix'\), .* commit 4831988"):
        halos(Other)


def test_cached_log_probs_of_other_pairs_are_refused(halos):
    with pytest.raises(InputError, match="cache_reference_logprobs: got True, expected false"):
        halos(Trainer).KTOTrainer(family("llama"), family("llama"), cached=True)
