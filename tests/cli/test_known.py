"""Wrong names: one line with the nearest right ones, before torch or transformers are imported."""

import pytest
from lightly import lightly, run

from fastkto.cli.options.parsing import training_parser
from fastkto.cli.options.strict import nearest


def refused(*argv, code=2, path=""):
    """The one line that a wrong command line gets, at once."""
    found, out, err = lightly(*argv, path=path)
    assert (found, out) == (code, "")
    (line,) = err.splitlines()
    return line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("trian", "unknown command 'trian'; did you mean 'train'?"),
        ("config.yaml", "did you mean 'train config.yaml'?"),
        ("train --lerning_rate 1", "unknown argument '--lerning_rate'; did you mean '--learning_rate'?"),
        ("train --lerning-rate=1", "unknown argument '--lerning-rate'; did you mean '--learning_rate'?"),
        ("train --betta 0.1 --help_", "unknown argument '--betta'; did you mean '--beta'? See: fastkto train --help"),
        ("train --batch_size 4", "'--per_device_train_batch_size'"),
        ("train --epochs 3", "'--num_train_epochs'"),
        ("train --model x", "'--model_name_or_path'"),
        ("train --lr 1", "Set learning_rate instead."),
        ("train --no_packign", "did you mean '--no_packing'?"),
        ("train --use_fsdp", "It is one of accelerate's"),
        ("train --zzzqqq", "unknown argument '--zzzqqq'. See: fastkto train --help"),
        ("plan --max_lenght 3", "'--max_length'"),
        ("data rows.jsonl --modle m", "'--model'"),
        ("merge out --out merged", "'--output_dir'"),
        ("merge out", "the following arguments are required: --output_dir."),
        ("bench --model m --systems nothing", "'trl-sft'"),
        ("report out more", "unknown argument 'more'"),
        ("completion tcsh", "'fish'"),
    ],
    ids=lambda text: text,
)
def test_a_wrong_command_line_is_refused_at_once(argv, words):
    assert words in refused(*argv.split())


def test_a_wrong_line_of_yaml_is_refused_at_once(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("model_name_or_path: m\nbetta: 0.1\n")
    for command in (["train", str(file)], ["plan", str(file), "--memory", "1GiB"]):
        line = refused(*command, code=1)
        assert "config.yaml line 2, betta: got 0.1, expected the name of a field. Did you mean 'beta'?" in line


def test_an_unknown_name_is_looked_up_in_the_transformers_that_is_installed(tmp_path):
    package = tmp_path / "transformers"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('transformers is imported')")
    fields = "class TrainingArguments:\n    output_dir: str = ''\n    quite_new: bool | None = field(default=None)\n"
    (package / "training_args.py").write_text(fields)
    assert "did you mean '--quite_new'?" in refused("train", "--quite_nwe", path=tmp_path)
    done = run("train", "--quite_new", "--output_dir", "out", path=tmp_path)
    assert "transformers is imported" in done.stderr, "the name is known, so that the run goes on"


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("bta", ["beta", "data"], "; did you mean 'beta'?"),
        ("weight", ["desirable_weight", "undesirable_weight", "seed"], "; did you mean 'desirable_weight' or "),
        ("--weigth_column", ["--weight_column", "--label_column"], "; did you mean '--weight_column'?"),
        ("qqqq", ["beta"], ""),
    ],
)
def test_the_nearest_names(name, known, near):
    found = nearest(name, known)
    assert found.startswith(near) if near else found == ""


def test_a_flag_of_true_or_false_needs_no_value():
    parser = training_parser(command="train")
    assert parser.read(["--bf16"])["bf16"] is True
    assert parser.read(["--no_bf16"])["bf16"] is False
    assert parser.read(["--bf16", "none"])["bf16"] is None
    assert parser.read([])["packing"] is None
    assert not {"bf16", "packing"} & parser.given(parser.read([])).keys()
    assert parser.given(parser.read(["--no_packing"]))["packing"] is False
