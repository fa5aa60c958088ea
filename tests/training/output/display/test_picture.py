import json
import math
import sys

import pytest

from fastkto.errors import InputError, MissingExtra
from fastkto.training.output.display.picture import draw, report


def write(folder, lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def step(number, **changes):
    figures = {
        "loss": 0.5 / number,
        "grad_norm": 3.0,
        "kl": max(0.0, 2.0 - number),
        "kl/raw": 2.0 - number,
        "kl/stderr": 0.5,
        "rewards/chosen": 0.1 * number,
        "rewards/rejected": -0.2 * number,
        "rewards/margins": 0.3 * number,
        "saturated": 0.25,
        "step": number,
    }
    return {**figures, **changes}


def panel(figure, title):
    return next(ax for ax in figure.axes if ax.get_title(loc="left").startswith(title))


def curve(figure, title, label):
    line = next(line for line in panel(figure, title).lines if line.get_label() == label)
    return dict(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_report_writes_a_picture(tmp_path):
    path = report(write(tmp_path, [step(1), step(2), {"train_runtime": 1.0, "step": 2}]))
    assert path == tmp_path / "report.png"
    image = pytest.importorskip("matplotlib.image", reason="the train extra brings matplotlib").imread(path)
    assert image.shape[0] >= 700
    assert image.shape[1] >= 1200
    assert image.std() > 0.05


def test_every_panel_shows_its_figures(tmp_path):
    figure = draw(write(tmp_path, [step(1), step(2), step(4)]))
    assert curve(figure, "Loss", "train") == {1: 0.5, 2: 0.25, 4: 0.125}
    assert curve(figure, "Reference point", "z0") == {1: 1.0, 2: 0.0, 4: 0.0}
    assert curve(figure, "Reference point", "before the clamp") == {1: 1.0, 2: 0.0, 4: -2.0}
    assert curve(figure, "Rewards", "undesirable")[4] == -0.8
    assert curve(figure, "Rewards", "desirable")[4] == 0.4
    assert curve(figure, "Reward margin", "train") == {1: 0.3, 2: 0.6, 4: 1.2}
    assert curve(figure, "Saturated", "train") == {1: 25.0, 2: 25.0, 4: 25.0}
    assert curve(figure, "Gradient norm", "train") == {1: 3.0, 2: 3.0, 4: 3.0}


def test_the_band_is_one_standard_error_wide(tmp_path):
    figure = draw(write(tmp_path, [step(1), step(2)]))
    (band,) = panel(figure, "Reference point").collections
    points = band.get_paths()[0].vertices
    assert sorted(set(points[points[:, 0] == 1][:, 1])) == [0.5, 1.5]


def test_a_class_without_a_row_has_no_point_in_that_step(tmp_path):
    lonely = step(2)
    del lonely["rewards/chosen"], lonely["rewards/margins"]
    figure = draw(write(tmp_path, [step(1), lonely, step(3)]))
    assert list(curve(figure, "Rewards", "desirable")) == [1, 3]
    assert list(curve(figure, "Rewards", "undesirable")) == [1, 2, 3]


def test_evaluations_stand_beside_the_training_loss(tmp_path):
    evaluation = {"eval_loss": 0.4, "eval_rewards/margins": 0.7, "step": 2}
    figure = draw(write(tmp_path, [step(1), step(2), evaluation]))
    assert curve(figure, "Loss", "held-out") == {2: 0.4}
    assert curve(figure, "Reward margin", "held-out") == {2: 0.7}


def test_a_loss_that_is_no_number_shows(tmp_path):
    figure = draw(write(tmp_path, [step(1), step(2, loss=math.nan), step(3, loss=math.inf)]))
    assert "2 of them with a non-finite loss" in figure.get_suptitle()
    assert math.isnan(curve(figure, "Loss", "train")[2])


def test_a_run_without_kl_says_so(tmp_path):
    apo = {key: value for key, value in step(1).items() if not key.startswith("kl")}
    figure = draw(write(tmp_path, [apo]))
    assert "not logged" in [text.get_text() for text in panel(figure, "Reference point").texts]


def test_a_resumed_run_is_read_as_last_logged(tmp_path):
    figure = draw(write(tmp_path, [step(1), step(2), step(3), step(2, loss=9.0)]))
    assert curve(figure, "Loss", "train") == {1: 0.5, 2: 9.0, 3: pytest.approx(0.5 / 3)}


def test_long_runs_get_a_running_mean(tmp_path):
    figure = draw(write(tmp_path, [step(n, loss=float(n % 2)) for n in range(1, 201)]))
    smooth = curve(figure, "Loss", "train (mean of 25)")
    assert min(smooth) == 25
    assert smooth[25] == pytest.approx(13 / 25)
    assert smooth[200] == pytest.approx(12 / 25)


def test_a_line_still_being_written_is_left_out(tmp_path):
    write(tmp_path, [step(1)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"loss": 0.2, "st')
    assert list(curve(draw(tmp_path), "Loss", "train")) == [1]


@pytest.mark.parametrize("line", ["{broken", "3", '{"loss": 1.0}'])
def test_a_line_that_is_no_log_line_is_named(tmp_path, line):
    write(tmp_path, [step(1)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl line 2"):
        report(tmp_path)
    assert not (tmp_path / "report.png").exists()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"run_dir.*holds metrics\.jsonl"):
        report(tmp_path)
    write(tmp_path, [{"eval_loss": 0.3, "step": 1}])
    with pytest.raises(InputError, match="training step"):
        report(tmp_path)


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"Run: pip install .+\[train\]"):
        report(write(tmp_path, [step(1)]))
