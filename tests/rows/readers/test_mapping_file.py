"""A reader of one's own without code, the choice of a reader, and the errors of both."""

import json

import pytest
from datasets import Dataset, IterableDataset

from fastkto.errors import InputError
from fastkto.rows import RowOptions, normalise
from fastkto.rows.readers import READERS, read_records

HELPDESK = """
prompt: ticket.turns
completion: [reply.final, reply.draft]
label: survey.smile.mood
labels: {happy: true, sad: false, 0: null}
system: ticket.policy
skip: {internal: true}
roles: {customer: user, agent: assistant}
source: queue
"""


def ticket(mood="happy", **more):
    turns = [{"role": "customer", "content": "Wo ist mein Paket? 📦", "user": "kim"}]
    record = {"ticket": {"turns": turns, "policy": "Be brief."}, "reply": {"final": None, "draft": "Morgen."}}
    return record | {"survey": {"smile.mood": mood}, "internal": False, "queue": "post", "user": "kim"} | more


@pytest.fixture
def helpdesk(tmp_path):
    (tmp_path / "helpdesk.yaml").write_text(HELPDESK)
    return str(tmp_path / "helpdesk.yaml")


def test_a_mapping_file(helpdesk, tmp_path):
    records = [ticket(), ticket("sad"), ticket(0), ticket(None), ticket("angry"), ticket(internal=True)]
    reading = read_records(records, RowOptions(reader=helpdesk))
    assert [row["label"] for row in reading.rows] == [True, False]
    assert reading.rows[0] == {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wo ist mein Paket? 📦"}],
        "completion": [{"role": "assistant", "content": "Morgen."}],
        "label": True,
        "source": "post",
    }
    assert reading.left_out.counts == {
        "rated neither good nor bad": 1,
        "not rated": 1,
        "rated 'angry', which the mapping's labels do not name": 1,
        "with internal = true": 1,
    }
    assert str(reading).startswith("read as helpdesk: 2 rows from 6 records")
    spelled = {"prompt": "ticket.turns", "completion": "reply.draft", "label": "survey.smile.mood"}
    (tmp_path / "helpdesk.json").write_text(json.dumps(spelled | {"roles": {"customer": "user"}}))
    options = RowOptions(reader=str(tmp_path / "helpdesk.json"), label_map=["happy=true", "sad=false"])
    assert normalise(Dataset.from_list(records[:2]), options)["label"][:] == [True, False]


def test_columns_that_the_user_names_win(helpdesk):
    record = ticket(other="Frage?", stars="4") | {"ticket": {"turns": "not these"}}
    columns = {"prompt_column": "other", "completion_column": "queue", "label_column": "stars"}
    with open(helpdesk, "w") as file:
        file.write("prompt: ticket.turns\ncompletion: reply.draft\nlabel: survey.mood")
    reading = read_records([record], RowOptions(reader=helpdesk, label_threshold=3, **columns))
    assert reading.rows == [{"prompt": "Frage?", "completion": "post", "label": 4}]
    assert reading.options == RowOptions(label_threshold=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt: a\ncompletion: b\nlabel: c\nlabells: {}", r"helpdesk.yaml: got 'labells', .*Did you mean 'labels'"),
        ("prompt: a\nlabel: c", r"one of: messages; prompt and completion; chosen and rejected"),
        ("messages: a\nprompt: b\ncompletion: c\nlabel: d", r"one of: messages; prompt and completion"),
        ("messages: a", r"expected a label\. Add `label: PATH`"),
        ("- a", r"expected a mapping with the keys keys, each, prompt"),
        ("messages: a\nlabel: 3", r"helpdesk.yaml, label: got 3, expected a path, or a list of them"),
        ("messages: a\nlabel: b\nlabels: {up: good}", r"labels: got .*expected true, false or null each"),
        ("messages: a\nlabel: b\nroles: {bot: robot}", r"roles: got .*expected system, user, assistant or tool each"),
        ("messages: a\nlabel: b\nskip: yes", r"skip: got True, expected `value: meaning` lines"),
        ("messages: a\nlabel: b\neach: [c]", r"each: got \['c'\], expected a path"),
        ("messages: a\nlabel: b\nkeys: c", r"keys: got 'c', expected a list of paths"),
        ("a: [", r"helpdesk.yaml line 1: got 'a: \[', expected valid YAML"),
    ],
)
def test_mapping_files_that_cannot_be_used(helpdesk, text, message):
    with open(helpdesk, "w") as file:
        file.write(text)
    with pytest.raises(InputError, match=message) as error:
        read_records([ticket()], RowOptions(reader=helpdesk))
    assert "\n" not in str(error.value)


def test_readers_that_cannot_be_used(tmp_path):
    with pytest.raises(
        InputError, match=r"reader: got 'openwebiu', expected auto, openwebui.*Did you mean 'openwebui'"
    ):
        read_records([ticket()], RowOptions(reader="openwebiu"))
    with pytest.raises(InputError, match=r"reader: got '.*none.yaml', expected a YAML file that exists"):
        read_records([ticket()], RowOptions(reader=str(tmp_path / "none.yaml")))
    with pytest.raises(InputError, match=r"label_column: got 'x', expected nothing beside reader=openwebui"):
        read_records([ticket()], RowOptions(reader="openwebui", label_column="x"))
    with pytest.raises(InputError, match=r"prompt_column: got 'x', expected nothing beside records with messages"):
        read_records([{"conversations": []}], RowOptions(reader="sharegpt", prompt_column="x"))
    with pytest.raises(InputError, match="a dataset that is not streamed"):
        normalise(IterableDataset.from_generator(lambda: iter([ticket()])), RowOptions(reader="auto"))


def test_records_of_which_no_row_is_left_say_why():
    with pytest.raises(InputError, match=r"no row as hh.*Left out: 1 that are not transcripts.*\(record 0\)"):
        read_records([ticket()], RowOptions(reader="hh"))


def test_every_name_that_the_help_lists_is_a_reader():
    text = RowOptions.__dataclass_fields__["reader"].metadata["help"]
    assert all(name in text for name in READERS)


def test_auto_says_so_where_it_knows_no_product(caplog):
    rows = [{"prompt": "a", "completion": "b", "label": True}] * 2
    with caplog.at_level("WARNING"):
        got = normalise(Dataset.from_list(rows), RowOptions(reader="auto"), dataset_name="own")
    assert got["label"][:] == [True, True]
    assert "The own dataset is of no known product, so its rows are read by their columns." in caplog.text
    pairs = [{"chosen": "Q: sky? A: blue", "rejected": "Q: sky? A: red"}]
    assert read_records(pairs, RowOptions(reader="auto")) is None
