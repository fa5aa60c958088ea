"""The auxiliary loss of a mixture of experts."""

import pytest
from stock_models import family
from tiny_trainer import noisy, rows, steps, trainer
from tolerance import assert_within

from fastkto.errors import InputError


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_auxiliary_loss_equals_trls(name, accumulation, tmp_path):
    trl = pytest.importorskip("trl", reason="the test extra brings TRL, the peer to compare with")
    from tiny import tiny_tokenizer

    def run(library):
        settings = {
            "output_dir": str(tmp_path / library.__name__),
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 3,
            "logging_steps": 1,
            "learning_rate": 3e-4,
            "train_sampling_strategy": "sequential",
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
        }
        t = library.KTOTrainer(
            family(name),
            ref_model=noisy(family(name)),
            args=library.KTOConfig(**settings),
            train_dataset=rows(24),
            processing_class=tiny_tokenizer(),
        )
        t.accelerator.gradient_accumulation_steps = 1  # transformers 5.5 divides TRL's loss once more
        t.train()
        return steps(t)

    import fastkto

    for ours, theirs in zip(run(fastkto), run(trl), strict=True):
        assert ours["aux_loss"] > 0
        for key in ("loss", "grad_norm", "aux_loss"):
            assert_within(ours[key], theirs[key], relative=1e-4, name=key)


def test_auxiliary_loss_of_a_dense_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="^router_aux_loss_coef: got 0.1"):
        trainer(tmp_path, router_aux_loss_coef=0.1)
