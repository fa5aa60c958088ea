"""Labels of rows: read as what they say, mapped, cut at a threshold, or refused."""

import logging

import pytest
from datasets import Dataset, IterableDataset
from feedback import rows_of

from fastkto.errors import InputError
from fastkto.rows import RowOptions, normalise
from fastkto.rows.labels import label_reader
from fastkto.rows.normalise import label_ties


@pytest.mark.parametrize(
    ("cell", "label"),
    [
        (True, True),
        (0, False),
        (1.0, True),
        ("true", True),
        ("false", False),
        (" False ", False),
        ("TRUE", True),
        ("1", True),
        ("0.0", False),
    ],
)
def test_labels_are_read_as_what_they_say(cell, label):
    assert rows_of([{"prompt": "a", "completion": "b", "label": cell}])[0]["label"] is label


@pytest.mark.parametrize("cell", ["yes", "", 2, -1, 0.5, float("nan"), None, [True]])
def test_any_other_label_is_an_error_that_names_the_row(cell):
    good = {"prompt": "a", "completion": "b", "label": True}
    with pytest.raises(InputError, match=r"eval row 1, column 'label'") as error:
        list(
            normalise(IterableDataset.from_generator(lambda: iter([good, good | {"label": cell}])), dataset_name="eval")
        )
    assert "--label_map" in str(error.value)


def test_label_map():
    read = label_reader({"up": True, 5: "true", "x=y": 0}, None)
    assert (read("up", ""), read(5, ""), read(5.0, ""), read("x=y", "")) == (True, True, True, False)
    assert label_reader(["a=b=1", "true=0"], None)(True, "") is False
    with pytest.raises(InputError, match=r"row 3.*one of the label_map \(up=true, 5=true"):
        read("sideways", "row 3")


@pytest.mark.parametrize("entries", [["up"], ["up=yes"], ["up=true", "up=false"], {"up": 2}])
def test_bad_label_map(entries):
    with pytest.raises(InputError, match="label_map"):
        label_reader(entries, None)


def test_label_threshold_names_ties_and_their_side(caplog):
    data = Dataset.from_list([{"prompt": "a", "completion": "b", "label": score} for score in (1, 4, 4, 5)])
    options = RowOptions(label_threshold=4)
    with caplog.at_level(logging.WARNING):
        rows = list(normalise(data, options))
    assert [row["label"] for row in rows] == [False, True, True, True]
    assert label_ties(data, options) == 2
    assert "2 rows at label = 4 are read as desirable" in caplog.text
    with pytest.raises(InputError, match="Choose one"):
        normalise(data, RowOptions(label_threshold=4, label_map=["4=true"]))
    with pytest.raises(InputError, match=r"row 0, column 'label'.*a score"):
        rows_of([{"prompt": "a", "completion": "b", "label": "good"}], label_threshold=4)
