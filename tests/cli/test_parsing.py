"""Dataclasses from YAML and flags: types, defaults, precedence, and TRL's field names."""

import dataclasses
from typing import Any

import pytest
import trl
from hypothesis import given
from hypothesis import strategies as st

from fastkto.cli.options.arguments import DataArguments, ModelArguments
from fastkto.cli.options.parsing import DataclassParser, build, fits
from fastkto.cli.options.strict import UsageError
from fastkto.cli.options.yaml_config import read_config
from fastkto.config import KTOConfig
from fastkto.rows import RowOptions


@dataclasses.dataclass
class Sample:
    rate: float = 1.0
    steps: int = 2
    name: str | None = None
    weight: float | str = 1.0
    limit: int | None = 8
    quiet: bool = False
    loud: bool = True
    maybe: bool | None = None
    words: list[str] | None = None
    numbers: list[int] | None = None
    extra: dict[str, Any] | str | None = None


def read(tmp_path, text="", *flags):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    settings = read_config(str(path)) if text else {}
    return build(Sample, DataclassParser(Sample, prog="test").read(list(flags), settings))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("rate: 5e-7", "rate", 5e-7),  # text in YAML 1.1
        ("rate: 3", "rate", 3),
        ("rate: '0.5'", "rate", 0.5),
        ("steps: '7'", "steps", 7),
        ("name: 2024-01-02", "name", "2024-01-02"),  # a date in YAML 1.1
        ("name: 1e5", "name", "1e5"),
        ("name: 007", "name", "007"),
        ("name: no", "name", "no"),  # a boolean in YAML 1.1
        ("name: null", "name", None),
        ("weight: auto", "weight", "auto"),
        ("weight: 2.5", "weight", 2.5),
        ("limit: null", "limit", None),
        ("quiet: yes", "quiet", True),
        ("quiet: 1", "quiet", True),
        ("loud: 'no'", "loud", False),
        ("maybe: false", "maybe", False),
        ("maybe: null", "maybe", None),
        ("words: [a, b]", "words", ["a", "b"]),
        ("words: all-linear", "words", ["all-linear"]),
        ("words: {yes: true, 5: false}", "words", ["yes=true", "5=false"]),
        ("numbers: ['1', 2]", "numbers", [1, 2]),
        ("extra: {a: 1}", "extra", {"a": 1}),
    ],
)
def test_yaml_values(tmp_path, text, name, value):
    got = getattr(read(tmp_path, text), name)
    assert got == value
    assert type(got) is type(value)


def test_merge_keys_and_anchors(tmp_path):
    assert read(tmp_path, "<<: {rate: 2.0, steps: 5}\nsteps: 6") == Sample(rate=2.0, steps=6)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--rate", "5e-7"], Sample(rate=5e-7)),
        (["--weight", "auto"], Sample(weight="auto")),
        (["--limit", "none"], Sample(limit=None)),
        (["--quiet"], Sample(quiet=True)),
        (["--quiet", "false"], Sample(quiet=False)),
        (["--no_loud"], Sample(loud=False)),
        (["--no-loud"], Sample(loud=False)),
        (["--maybe", "true"], Sample(maybe=True)),
        (["--words", "a", "b"], Sample(words=["a", "b"])),
        (["--numbers=1"], Sample(numbers=[1])),
        (["--name", "none"], Sample(name="none")),
        (["--extra", '{"a": 1}'], Sample(extra='{"a": 1}')),
    ],
)
def test_flags(tmp_path, flags, expected):
    assert read(tmp_path, "", *flags) == expected


def test_flags_come_before_yaml_before_defaults(tmp_path):
    assert read(tmp_path, "rate: 2.0\nsteps: 3\nwords: [a]", "--rate", "4") == Sample(rate=4.0, steps=3, words=["a"])


@pytest.mark.parametrize(
    "flags", [["--rate"], ["--rate", "x"], ["--rat", "1"], ["stray"], ["--words"], ["--rate=", "1"]]
)
def test_flags_that_cannot_be_read(tmp_path, flags):
    with pytest.raises(UsageError, match="test --help"):
        read(tmp_path, "", *flags)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_fits_agrees_with_isinstance_but_for_booleans(value):
    assert fits(value, int) == (type(value) is int)
    assert fits(value, float) == (type(value) in (int, float))
    assert fits(value, str | None) == (value is None or isinstance(value, str))
    assert fits(value, list[int]) == isinstance(value, list)
    assert fits(value, Any)


def defaults(*classes):
    both = (dataclasses.MISSING, dataclasses.MISSING)
    found = {}
    for cls in classes:
        for field in dataclasses.fields(cls):
            found[field.name] = field.default if field.default_factory is both[0] else None
    return found


def test_every_field_of_trls_command_is_here_with_its_default():
    theirs = defaults(trl.ScriptArguments, trl.ModelConfig, trl.DatasetMixtureConfig)
    ours = defaults(DataArguments, ModelArguments, RowOptions)
    assert {name: ours[name] for name in theirs} == theirs
    assert defaults(trl.KTOConfig).keys() <= defaults(KTOConfig).keys()


def test_no_two_dataclasses_share_a_field():
    names = [
        field.name
        for cls in (DataArguments, ModelArguments, RowOptions, KTOConfig)
        for field in dataclasses.fields(cls)
    ]
    assert len(names) == len({*names})


def test_help_renders(capsys):
    parser = DataclassParser(DataArguments, RowOptions, ModelArguments, KTOConfig, prog="test")
    assert "--every_assistant_turn" in parser.format_help()
