"""`fastkto plan` on the command line."""

import pytest
from tiny import tiny_llama, tiny_tokenizer

from fastkto.cli import main
from fastkto.cli.commands.plan import _several_processes, size
from fastkto.cli.options.arguments import LaunchArguments


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def plan(capsys, *flags):
    code = main(["plan", *flags])
    return code, *capsys.readouterr()


def test_parts_their_sum_and_what_fits_are_printed(capsys, folder):
    code, out, _ = plan(capsys, "--model", folder, "--memory", "8GiB", "--max_length", "1024", "--use_cpu")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == (
        "At its peak a step of 8 rows of 1024 tokens on cpu, float32 weights, all weights trained, a live reference:"
    )
    parts = dict(line.rsplit(maxsplit=2)[:2] for line in lines[1:11])
    assert {part.strip() for part in parts} >= {"weights", "gradients", "the process itself", "in total"}
    values = [float(value) for value in parts.values()]
    assert sum(values[:-1]) == pytest.approx(values[-1], abs=0.05)
    assert "fits in 8.0 GiB" in out
    assert "max_length with 8 rows per micro-batch: 2048, the model's window" in out
    assert "per_device_train_batch_size with 1024 tokens per row: 128 or more" in out


def test_a_yaml_for_training_is_planned_and_what_does_not_fit_is_said(capsys, folder, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model_name_or_path: {folder}\ndataset_name: data.jsonl\nuse_peft: true\nmax_length: 512\nuse_cpu: true\n"
        "precompute_ref_log_probs: true\nper_device_train_batch_size: 4\n"
    )
    code, out, _ = plan(capsys, str(config), "--memory", "64M")
    assert code == 1
    assert "4 rows of 512 tokens" in out
    assert "an adapter trained, the reference's log-probs from disk" in out
    assert "DOES NOT FIT in 0.1 GiB" in out
    assert "max_length with 4 rows per micro-batch: none fits" in out
    assert "per_device_train_batch_size with 512 tokens per row: none fits" in out


def test_what_goes_to_from_pretrained_counts(capsys, folder):
    flags = ("--model", folder, "--memory", "8GiB", "--use_cpu", "--model_init_kwargs", '{"dtype": "bfloat16"}')
    code, out, _ = plan(capsys, *flags)
    assert code == 0
    assert "bfloat16 weights" in out.splitlines()[0]


@pytest.mark.parametrize(("processes", "several"), [(None, False), (1, False), (2, True)])
def test_several_processes_are_planned_with_buckets(processes, several, monkeypatch):
    assert _several_processes(LaunchArguments(num_processes=processes)) is several
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert _several_processes(LaunchArguments(num_processes=processes)) is (processes != 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--memory", "much"), "'much' is not a size; write e.g. 24GiB"),
        (("--memory", "0GiB"), "'0GiB' is not a size"),
        ((), "--memory"),
        (("--memory", "1GiB", "--max_length", "None"), "max_length: got None, expected a number"),
        (("--memory", "1GiB", "--optim", "rmsprop"), "optim: got 'rmsprop', expected one of"),
        (("--memory", "1GiB", "--load_in_4bit", "--use_peft"), "load_in_4bit: got True"),
        (("--memory", "1GiB", "--model", "./nowhere"), "a folder that exists"),
        (("--memory", "1GiB", "--accelerate_config", "fsdp.yaml"), "accelerate_config: got 'fsdp.yaml'"),
        (("--memory", "1GiB", "--activation_offloading", "true"), "activation_offloading: got True"),
    ],
)
def test_what_cannot_be_planned_is_one_message(capsys, folder, flags, message):
    code, out, err = plan(capsys, "--model", folder, *flags)
    assert code in (1, 2)
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 << 30),
        ("24G", 24 << 30),
        ("24gb", 24 * 10**9),
        ("512MiB", 512 << 20),
        ("1.5 TiB", 3 << 39),
        ("7", 7),
    ],
)
def test_sizes_are_read(text, expected):
    assert size(text) == expected
