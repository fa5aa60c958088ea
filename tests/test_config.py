"""KTOConfig and the constructor against TRL 1.16's, and values that are refused."""

import dataclasses
import inspect

import pytest
import torch
from tiny_trainer import config
from transformers.utils import logging

import fastkto
from fastkto import KTOConfig, KTOTrainer
from fastkto.errors import InputError

trl = pytest.importorskip("trl", reason="the test extra brings TRL, the peer to compare with")

DIFFERENT = {
    "train_sampling_strategy": ("random", "sequential"),
    "logging_nan_inf_filter": (False, True),
    "ddp_broadcast_buffers": (False, None),
}
"""Ours and TRL's default; documented in KTOConfig."""


def default(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def test_every_field_of_trl_is_there_with_its_default():
    ours = {field.name: default(field) for field in dataclasses.fields(KTOConfig)}
    theirs = {field.name: default(field) for field in dataclasses.fields(trl.KTOConfig)}
    assert theirs.keys() <= ours.keys()
    differences = {name: (ours[name], value) for name, value in theirs.items() if ours[name] != value}
    assert differences == DIFFERENT
    documentation = inspect.getdoc(KTOConfig)
    assert all(name in documentation for name in DIFFERENT)


def test_the_constructor_is_trls():
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (KTOTrainer, trl.KTOTrainer))
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        assert parameter.kind == theirs[name].kind, name
        assert parameter.default == theirs[name].default, name


def test_fields_of_our_own_have_help():
    known = {field.name for field in dataclasses.fields(trl.KTOConfig)}
    for field in dataclasses.fields(KTOConfig):
        if field.name not in known:
            assert field.metadata.get("help"), field.name


REFUSED = [
    ({"desirable_weight": "automatic"}, "desirable_weight: got 'automatic', expected a number"),
    ({"loss_type": "dpo"}, "loss_type: got 'dpo', expected one of"),
    ({"train_sampling_strategy": "shuffled"}, "train_sampling_strategy: got 'shuffled'"),
    ({"per_device_train_batch_size": 1}, "per_device_train_batch_size: got 1, .*max_tokens_per_forward"),
    ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "sync_ref_model: got True"),
    ({"ddp_broadcast_buffers": True, "max_tokens_per_forward": 9}, "ddp_broadcast_buffers: got True, expected False"),
    ({"pad_to_multiple_of": "eight"}, "pad_to_multiple_of: got 'eight'"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_values_that_make_no_sense_are_named(values, message, tmp_path):
    with pytest.raises(InputError, match=f"^{message}"):
        config(tmp_path, **values)


def test_values_as_a_command_line_or_yaml_gives_them(tmp_path):
    assert config(tmp_path, desirable_weight="1.5").desirable_weight == 1.5
    assert config(tmp_path, desirable_weight="auto").desirable_weight == "auto"
    assert config(tmp_path, pad_to_multiple_of="8").pad_to_multiple_of == 8
    assert config(tmp_path, pad_to_multiple_of="none").pad_to_multiple_of is None
    assert config(tmp_path, model_init_kwargs='{"dtype": "auto"}').model_init_kwargs == {"dtype": "auto"}
    assert config(tmp_path, max_length=None).max_length is None
    assert config(tmp_path, per_device_train_batch_size=1, loss_type="apo_zero_unpaired").loss_type.startswith("apo")


def test_an_output_directory_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="^output_dir: got .*expected a directory"):
        config(tmp_path, output_dir=str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(torch.cuda.is_available(), reason="what happens where there is no accelerator")
def test_bf16_is_off_on_a_cpu_unless_asked_for_and_a_line_says_so(tmp_path, caplog):
    logging.warning_once.cache_clear() if hasattr(logging.warning_once, "cache_clear") else None
    with caplog.at_level("WARNING"):
        assert KTOConfig(str(tmp_path)).bf16 is False
    assert KTOConfig(str(tmp_path), bf16=True, use_cpu=True).bf16 is True
    assert KTOConfig(str(tmp_path), fp16=True, use_cpu=True).bf16 is False


def test_checkpointing_reaches_the_trainer_under_either_name(tmp_path):
    assert config(tmp_path).gradient_checkpointing is True
    for value in (True, False):
        args = config(tmp_path, gradient_checkpointing=value)
        assert getattr(args, "activation_checkpointing", value) is value


def test_liger_kernels_leave_the_head_to_us(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_liger_kernel_available", lambda: True, raising=False)
    args = config(tmp_path, use_liger_kernel=True, liger_kernel_config={"rope": True})
    assert args.liger_kernel_config == {"rope": True, "fused_linear_cross_entropy": False}
    with pytest.raises(InputError, match="^liger_kernel_config: got"):
        config(tmp_path, use_liger_kernel=True, liger_kernel_config={"fused_linear_cross_entropy": True})


def test_a_config_survives_saving(tmp_path):
    args = config(tmp_path, desirable_weight="auto", max_tokens_per_forward=64)
    torch.save(args, tmp_path / "training_args.bin")
    again = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert again.to_dict() == args.to_dict()
    assert fastkto.KTOConfig is type(again)
