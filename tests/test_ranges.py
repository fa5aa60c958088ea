"""C5: every number that a user can set has a range, kept through Python, flags and YAML, and listed in the docs."""

import dataclasses
import math
import re
import typing
from pathlib import Path

import pytest

from fastkto.cli.options.arguments import DataArguments, LaunchArguments, MixturePart, ModelArguments
from fastkto.cli.options.parsing import DataclassParser, build
from fastkto.cli.options.strict import UsageError
from fastkto.cli.options.yaml_config import read_config
from fastkto.config import KTOConfig
from fastkto.errors import InputError
from fastkto.ranges import RANGES, Range, check_range
from fastkto.rows import RowOptions
from fastkto.rows.selection import Selection

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
CLASSES = (KTOConfig, RowOptions, DataArguments, ModelArguments, LaunchArguments)
OWNER = {field.name: cls for cls in CLASSES for field in dataclasses.fields(cls)}
NAMES = [name for name in RANGES if name in OWNER]
"""`fraction` stands in an entry of `datasets`, and some names are those of another transformers."""

VALUES = {"0": 0, "-1": -1, "nan": math.nan, "inf": math.inf, "1e30": 1e30, "text": "text"}
MAY_BE_A_WORD = ("desirable_weight", "pad_to_multiple_of")
YAML = {"nan": ".nan", "inf": ".inf", "1e30": "1.0e+30"}
TAKEN = {
    "0": {
        *("learning_rate", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm"),
        *("label_smoothing_factor", "neftune_noise_alpha", "router_aux_loss_coef", "eval_delay", "seed", "data_seed"),
        *("dataloader_num_workers", "local_rank", "machine_rank", "main_process_port", "lora_dropout", "fraction"),
        *("label_threshold", "label_band", "frac_unique_desirable", "frac_unique_undesirable", "warmup_ratio"),
    },
    "-1": {"max_steps", "local_rank", "label_threshold", "label_band"},
    "1e30": {"label_threshold", "label_band"},
}


@pytest.fixture(scope="module")
def parsers():
    return {cls: DataclassParser(cls, prog="test") for cls in CLASSES}


def given(name, value):
    """A value as the field holds it: `label_band` has two."""
    return [value, 2e30] if RANGES[name].two else value


def from_python(name, word, *_):
    more = {"output_dir": None, "use_cpu": True} if OWNER[name] is KTOConfig else {}
    return OWNER[name](**more, **{name: given(name, VALUES[word])})


def from_flags(name, word, parsers, _):
    two = ["2e30"] if RANGES[name].two else []
    flag = [f"--{name}", word, *two] if two or word != "-1" else [f"--{name}=-1"]
    return build(OWNER[name], parsers[OWNER[name]].read(flag))


def from_yaml(name, word, parsers, folder):
    text = YAML.get(word, word)
    (folder / "c.yaml").write_text(f"{name}: [{text}, 2.0e+30]" if RANGES[name].two else f"{name}: {text}")
    return build(OWNER[name], parsers[OWNER[name]].read([], read_config(str(folder / "c.yaml"))))


@pytest.mark.parametrize("way", [from_python, from_flags, from_yaml])
@pytest.mark.parametrize("word", VALUES)
def test_C5_what_is_out_of_range_is_refused_by_name_and_what_is_within_is_taken(way, word, parsers, tmp_path):
    for name in NAMES:
        if name in TAKEN.get(word, ()):
            assert getattr(way(name, word, parsers, tmp_path), name) in (given(name, VALUES[word]), None), name
            continue
        with pytest.raises((InputError, UsageError)) as refused:
            way(name, word, parsers, tmp_path)
        line = str(refused.value)
        assert "\n" not in line, name
        assert name in line, line
        if way is from_python and word != "text":
            assert f"{name}: got {given(name, VALUES[word])!r}, expected {RANGES[name]}. Correct it" in line
        if way is from_yaml:
            assert "c.yaml line 1" in line or name in MAY_BE_A_WORD, line


@pytest.mark.parametrize("word", VALUES)
def test_C5_of_an_entry_of_datasets_and_of_a_selection_too(word):
    for make in (
        lambda value: DataArguments(datasets=[{"path": "rows.jsonl", "fraction": value}]),
        lambda value: Selection(frac_unique_desirable=value),
    ):
        if word in TAKEN and "fraction" in TAKEN[word]:
            make(VALUES[word])
            continue
        with pytest.raises(InputError, match=r"^frac\w+: got .*, expected a number from 0"):
            make(VALUES[word])


def test_C5_every_number_of_every_dataclass_is_in_the_table():
    for cls in (*CLASSES, MixturePart, Selection):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            numeric = re.search(r"\b(int|float)\b", str(hints[field.name]))
            assert (numeric is not None) == (field.name in RANGES), field.name


def test_C5_defaults_ends_and_words_of_their_own_are_taken():
    for name in NAMES:
        field = next(field for field in dataclasses.fields(OWNER[name]) if field.name == name)
        check_range(name, field.default)
    for name, taken in RANGES.items():
        if taken.two:
            continue
        for end, without in ((taken.low, taken.above), (taken.high, taken.below)):
            whole = int(end) if taken.whole else end
            assert taken.holds(whole) is not without, name
        assert all(map(taken.holds, taken.besides)), name


def test_C5_counts_and_shares():
    count, interval = Range(1, 9, whole=True), Range(0, 9, above=True, whole_from_1=True)
    assert [count.holds(value) for value in (1, 9, 10, 1.0, True, None, "1", [1])] == [True, True, *[False] * 6]
    assert [interval.holds(value) for value in (0.5, 1, 2.0, 2.5, 0)] == [True, True, True, False, False]
    band = RANGES["label_band"]
    assert [band.holds(value) for value in ([1, 2], [2, 1], [1], [1, None], 1)] == [True, False, False, False, False]


def row(name):
    field = next(field for field in dataclasses.fields(OWNER[name]) if field.name == name)
    return f"| `{name}` | {'none' if field.default is None else field.default} | {RANGES[name]} |"


def test_C5_the_page_of_settings_is_the_table():
    rows = [row(name) for name in NAMES if name != "warmup_ratio"]  # transformers has it no more
    table = ["| field | default | takes |", "|---|---|---|", *rows, f"| `fraction` | none | {RANGES['fraction']} |"]
    assert [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")] == table
