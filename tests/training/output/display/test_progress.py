"""What a training prints: the figures that matter, at any width, and the whole of them in the files."""

import builtins
import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
from tiny_trainer import At, rows, steps, trainer
from transformers.utils import logging as transformers_logging

from fastkto.training.output.display import notebook, progress
from fastkto.training.output.display.progress import COLUMNS, duration, fitting, header, row

LINE = {
    "at": "120/300",
    "loss": 0.43214,
    "kl": 0.1234,
    "rewards/margins": -1.5,
    "rewards/accuracies": 0.714,
    "speed": 12345.6,
    "left": "1:02:03",
}


def test_a_line_holds_what_matters():
    columns = fitting(80)
    assert header(columns).split() == ["step", "loss", "kl", "margin", "accuracy", "tokens/s", "left"]
    assert row(LINE, columns).split() == ["120/300", "0.4321", "0.123", "-1.500", "71%", "12,346", "1:02:03"]


@pytest.mark.parametrize("width", [10, 20, 40, 50, 60, 80, 120])
def test_columns_fit_the_terminal_and_stand_under_their_titles(width):
    columns = fitting(width)
    assert len(header(columns)) == len(row(LINE, columns)) <= max(width, 21)
    assert [column.title for column in columns][:2] == ["step", "loss"]
    wider = fitting(width + 20)
    assert [column for column in wider if column in columns] == columns


def test_a_figure_that_is_not_there_leaves_its_place_empty():
    alone = {"at": "1/2", "loss": math.nan, "kl": 123456.0}
    text = row(alone, list(COLUMNS))
    assert text.split() == ["1/2", "nan", "1.2e+05"]
    assert text.index("1.2e+05") < header(COLUMNS).index("margin")


def test_durations():
    assert [duration(x) for x in (0, 59.6, 61, 3600, 90061)] == ["0:00", "1:00", "1:01", "1:00:00", "25:01:01"]


@pytest.fixture(autouse=True)
def bars():
    """As a process begins: a command that ran here before may have turned them off."""
    was = transformers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()
    yield
    if not was:
        transformers_logging.disable_progress_bar()


def printed(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_a_training_prints_a_line_a_log_line_and_files_get_all_of_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    sets = {"easy": rows(4), "hard": rows(6)}
    t = trainer(tmp_path, eval_dataset=sets, eval_strategy="steps", eval_steps=3, disable_tqdm=False)
    t.train()
    out = printed(capsys)
    titles, *lines, last = out
    assert titles.split()[:3] == ["step", "loss", "kl"]
    assert [line.split()[0] for line in lines] == ["1/3", "2/3", "3/3", "eval", "eval"]
    assert [line.split()[1] for line in lines[3:]] == ["easy", "hard"]
    assert last.startswith("3 steps in 0:")
    for line, logged in zip(lines, steps(t), strict=False):
        assert line.split()[1] == f"{logged['loss']:.4f}"
    on_disk = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {"grad_norm", "learning_rate", "rewards/chosen", "logps/rejected", "kl/raw"} <= on_disk[0].keys()
    assert transformers_logging.is_progress_bar_enabled()


def test_a_line_by_the_user_is_printed_too(tmp_path, capsys):
    t = trainer(tmp_path, max_steps=1)
    t.add_callback(At(1, lambda: t.log({"my metric": 3.5})))
    t.train()
    assert "my metric 3.5" in printed(capsys)[0]


def test_titles_come_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "HEADER_EVERY", 2)
    trainer(tmp_path, max_steps=5).train()
    assert sum(line.split()[0] == "step" for line in printed(capsys)) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_a_terminal_gets_a_bar_which_is_gone_afterwards(fails, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    bars, make = [], progress._bar
    monkeypatch.setattr(progress, "_bar", lambda state: bars.append(make(state)) or bars[-1])
    t = trainer(tmp_path, disable_tqdm=False)
    t.add_callback(At(3, lambda: 1 / 0 if fails else None))
    if fails:
        with pytest.raises(ZeroDivisionError):
            t.train()
    else:
        t.train()
    (bar,) = bars
    assert bar.tasks[0].completed == (2 if fails else 3)
    assert not bar.live.is_started
    assert transformers_logging.is_progress_bar_enabled()
    assert "2/3" in capsys.readouterr().out


def test_without_rich_the_lines_remain(tmp_path, capsys, monkeypatch):
    stock = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("rich"):
            raise ImportError(name)
        return stock(name, *args, **kwargs)

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    t = trainer(tmp_path, disable_tqdm=False)
    t.train()
    assert "3/3" in capsys.readouterr().out


def test_a_notebook_gets_the_same_columns_and_the_picture(tmp_path, monkeypatch, capsys):
    shown = []

    class Place:
        def update(self, what):
            shown.append(what)

    module = ModuleType("IPython.display")
    module.HTML = str
    module.Image = lambda data: SimpleNamespace(data=data)
    module.display = lambda what, display_id=None: shown.append(what) or Place()
    package = ModuleType("IPython")
    package.version_info, package.get_ipython = (9, 0), lambda: None
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(notebook, "is_in_notebook", lambda: True)
    t = trainer(tmp_path, eval_dataset={"<b>": rows(4)}, eval_strategy="steps", eval_steps=3)
    t.train()
    *tables, picture = shown
    assert picture.data.startswith(b"\x89PNG")
    assert tables[-1].count("<tr>") == 1 + 3 + 1
    assert "<b>" not in tables[-1]
    for column in COLUMNS:
        assert f"<th>{column.title}</th>" in tables[-1]
    assert f"<td>{steps(t)[-1]['loss']:.4f}</td>" in tables[-1]
    assert "<progress" in tables[0]
    assert "<progress" not in tables[-1]
    assert not capsys.readouterr().out
