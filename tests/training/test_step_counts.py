"""What a step costs, counted: forwards of the model, and tokens through each layer, forward, recompute and backward."""

import pytest
import torch
from datasets import Dataset
from tiny import tiny_llama, tiny_tokenizer

from fastkto import KTOConfig, KTOTrainer

BATCH = 4


class Counter:
    """Tokens through each layer's MLP, by kind of pass."""

    def __init__(self, model):
        self.forwards = 0
        self.tokens = {"graph": [], "no graph": [], "backward": []}
        model.model.register_forward_pre_hook(lambda *_: self._forward())
        for layer in model.model.layers:
            # the recompute stops inside of the MLP, once it has what the backward needs: a forward hook would miss it
            layer.mlp.register_forward_pre_hook(self._entered)
            layer.mlp.register_forward_hook(self._left)

    def _forward(self):
        self.forwards += 1

    def _entered(self, module, inputs):
        self.tokens["graph" if torch.is_grad_enabled() else "no graph"].append(inputs[0].shape[1])

    def _left(self, module, inputs, output):
        if output.requires_grad:
            output.register_hook(lambda grad: self.tokens["backward"].append(grad.shape[1]))


def rows():
    return Dataset.from_list(
        [
            {"prompt_ids": list(range(10, 13 + i)), "completion_ids": list(range(20, 22 + 2 * i)), "label": i % 2 == 0}
            for i in range(BATCH)
        ]
    )


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_token_passes_each_layer_once_and_kl_rows_stay_out_of_the_backward(tmp_path, cached, checkpointing):
    policy, reference = tiny_llama(), tiny_llama()
    args = KTOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=BATCH,
        max_steps=1,
        gradient_checkpointing=checkpointing,
        precompute_ref_log_probs=cached,
        packing=True,
        save_strategy="no",
        use_cpu=True,
    )
    trainer = KTOTrainer(policy, reference, args, train_dataset=rows(), processing_class=tiny_tokenizer())
    ours, theirs = Counter(policy), Counter(reference)
    trainer.train()

    data, layers = rows().to_list(), len(policy.model.layers)
    p, t = (sum(len(row[k]) for row in data) for k in ("prompt_ids", "completion_ids"))
    k = t  # the set of y' is the set of y
    assert ours.forwards == 1
    assert ours.tokens["graph"] == [p + t] * layers * (2 if checkpointing else 1)
    assert ours.tokens["no graph"] == [k] * layers
    assert len(ours.tokens["backward"]) == layers
    assert set(ours.tokens["backward"]) == {p + t}
    assert theirs.forwards == (0 if cached else 1)
    assert theirs.tokens["no graph"] == ([] if cached else [p + t, k] * layers)
    assert theirs.tokens["graph"] == []
