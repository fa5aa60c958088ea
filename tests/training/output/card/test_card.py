"""The model card: what was trained on what, and the command that does it again."""

import logging

import peft
import pytest
import yaml
from adapters import LORA
from datasets import Dataset
from tiny_trainer import rows, steps, trainer


def parts(path):
    _, head, body = path.read_text().split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.mark.parametrize("adapter", [False, True])
def test_the_card_says_what_was_trained_on_what(adapter, tmp_path):
    config = peft.LoraConfig(**LORA) if adapter else None
    t = trainer(tmp_path, peft_config=config, beta=0.2, eval_dataset=rows(6), eval_strategy="epoch")
    t.train()
    t.save_model()
    head, body = parts(tmp_path / "out" / "README.md")
    assert head["tags"] == ["fastkto", "kto"]
    assert head["library_name"] == ("peft" if adapter else "transformers")
    first, last = steps(t)[0], steps(t)[-1]
    for words in (
        *t.data_lines,
        "| `beta` | `0.2` |",
        f"| loss | {first['loss']:.6g} | {last['loss']:.6g} |",
        f"torch {t.record.about['versions']['torch']}",
    ):
        assert words in body
    assert "`logging_dir`" not in body
    assert "learning_rate" in body
    assert "max_length" not in body, "it has its default"


def test_a_line_that_lacks_a_class_lacks_its_figures_only(tmp_path):
    t = trainer(tmp_path, train_dataset=rows(12, desirable=lambda i: i >= 4), train_sampling_strategy="sequential")
    t.train()
    t.save_model()
    assert "rewards/chosen" not in steps(t)[0]
    body = (tmp_path / "out" / "README.md").read_text()
    assert f"| rewards/chosen | {steps(t)[1]['rewards/chosen']:.6g} |" in body


def test_a_readme_of_somebody_else_stays(tmp_path, caplog):
    t = trainer(tmp_path)
    t.train()
    mine = tmp_path / "out" / "README.md"
    mine.write_text("# My notes\n")
    t.save_model()
    assert mine.read_text() == "# My notes\n"
    assert "is not a model card of ours" in caplog.text


def test_an_adapter_that_starts_elsewhere_is_said_with_the_gap(tmp_path, caplog):
    config = peft.FourierFTConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], n_frequency=64, scaling=600.0)
    t = trainer(tmp_path, peft_config=config)
    with caplog.at_level(logging.WARNING):
        t.train()
    gap = max(abs(line) for line in (steps(t)[0]["rewards/chosen"], steps(t)[0]["rewards/rejected"]))
    assert gap > 0
    assert "nats from the reference's (the model with the adapter off)" in caplog.text
    caplog.clear()
    trainer(tmp_path / "lora", peft_config=peft.LoraConfig(**LORA)).train()
    assert "from the reference's" not in caplog.text


def test_a_stream_has_a_card_too(tmp_path):
    t = trainer(tmp_path, train_dataset=Dataset.from_list(rows(20).to_list()).to_iterable_dataset())
    t.train()
    t.save_model()
    assert "a stream, which was not counted" in (tmp_path / "out" / "README.md").read_text()
