"""Pictures as files: PNG and SVG of a sane size, the same bytes each time, and no matplotlib where none is asked."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import distsgd
from distsgd.cli import plot
from distsgd.cli.command_line import parse_arguments
from distsgd.cli.plot import draw
from distsgd.core.errors import ConfigurationError, DistsgdError, RunFolderError
from distsgd.core.options import options_of
from distsgd.data.named.datasets import open_dataset, read_array
from distsgd.nn.task import Task
from distsgd.plots import boundary, confusion, misclassified
from distsgd.plots.canvas import check_installed, save, style
from distsgd.plots.curves import CurveOptions, draw_curves
from distsgd.plots.filters import draw_filters, find_filters
from distsgd.run.config import TrainConfig
from distsgd.run.picture_material import SPLITS, read_run, run_of, stored_material
from distsgd.run.pictures import PICTURES, Choices, draw_overlay, draw_run

SVG = "{http://www.w3.org/2000/svg}svg"


def check_files(folder: Path, names: set[str]) -> None:
    """These pictures and no others, each a PNG of a page's width and an SVG that is sound and not too large."""
    assert {path.name for path in folder.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    for path in folder.glob("*.png"):
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        assert 900 <= width <= 1500, path
        assert 300 <= height <= 2500, path
        assert 5_000 < len(data) < 600_000, path
    for path in folder.glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag == SVG
        assert "<dc:date>" not in text
        assert 5_000 < len(text) < 600_000, path


def digits() -> tuple[np.ndarray, np.ndarray]:
    source = open_dataset("digits")
    return read_array(source.arrays["x_train"]) / np.float32(16), read_array(source.arrays["y_train"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the digits, drawn as it ended, and another that is not drawn."""
    folder = tmp_path_factory.mktemp("runs")
    train("mlp", folder / "a", plot=True, log_every=5)
    train("softmax", folder / "softmax")
    return folder


def train(model: str, out: Path, **more: Any) -> None:
    x, y = digits()
    options: dict[str, Any] = {
        "test": (x[1200:], y[1200:]),
        "epochs": 2,
        "batch_size": 100,
        "validation_fraction": 0.1,
        **more,
    }
    options |= {"hidden": (16,)} if model == "mlp" else {}
    distsgd.fit(model, (x[:1200], y[:1200]), out=str(out), **options)


def test_pictures_of_images(runs: Path) -> None:
    check_files(runs / "a" / "plots", {"curves", "filters", "confusion", "misclassified"})


@pytest.mark.long
def test_same_run_same_bytes(runs: Path) -> None:
    train("mlp", runs / "again" / "a", plot=True, log_every=5)
    for path in sorted((runs / "a" / "plots").iterdir()):
        other = (runs / "again" / "a" / "plots" / path.name).read_bytes()
        assert path.read_bytes() == other, f"{path.name} differs between equal runs"
    draw_run(stored_material(read_run(runs / "a")), runs / "later", Choices(only=("curves", "filters", "confusion")))
    for path in (runs / "later").iterdir():
        assert path.read_bytes() == (runs / "a" / "plots" / path.name).read_bytes()


def test_what_lacks_its_data_is_skipped_with_a_sentence(runs: Path) -> None:
    drawn = draw_run(stored_material(read_run(runs / "softmax")), runs / "softmax" / "plots", Choices())
    assert drawn.names == ["curves", "filters", "confusion"]
    (note,) = drawn.notes
    assert note.startswith("misclassified skipped: ")
    assert "arrays in memory" in note
    with pytest.raises(distsgd.core.errors.DataError, match="arrays in memory"):
        draw_run(stored_material(read_run(runs / "softmax")), runs / "no", Choices(only=("misclassified",)))


def test_overlay(runs: Path) -> None:
    found = [read_run(runs / name) for name in ("a", "softmax")]
    assert draw_overlay(found, runs / "both", Choices()).names == ["curves"]
    check_files(runs / "both", {"curves"})
    with style():
        figure = draw_curves(found, CurveOptions())
    reported = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert reported == [
        "a: model mlp, hidden 16", "softmax: model softmax, hidden 128 128", "training", "validation", "test",
        "best validation",
    ]  # fmt: skip
    loss, accuracy = figure.axes
    assert [loss.get_xlabel(), loss.get_ylabel()] == ["epoch", "cross-entropy (nats per example)"]
    assert accuracy.get_ylabel() == "classified correctly (%)"
    with pytest.raises(ConfigurationError, match="several runs share a picture of curves alone"):
        draw_overlay(found, runs / "both", Choices(only=("filters",)))


def test_curves_in_the_figure_are_those_of_the_records(runs: Path) -> None:
    run = read_run(runs / "a")
    with style():
        figure = draw_curves([run], CurveOptions(score="error"))
    steps = [record["step"] for record in run.records if "validation_error" in record]
    expected = [100 * record["validation_error"] for record in run.records if "validation_error" in record]
    lines = {tuple(line.get_ydata()): line.get_xdata() for line in figure.axes[1].lines}
    per_epoch = steps[0]
    assert list(lines[tuple(expected)]) == [step / per_epoch for step in steps]


@pytest.mark.long
def test_two_inputs(tmp_path: Path) -> None:
    source = open_dataset("moons")
    x, y = (read_array(source.arrays[f"{kind}_train"]) for kind in "xy")
    distsgd.fit("mlp", (x, y), hidden=(8,), epochs=2, out=str(tmp_path / "moons"), plot=True)
    check_files(tmp_path / "moons" / "plots", {"curves", "confusion", "boundary"})
    distsgd.fit("mlp", (x, x[:, 0]), hidden=(8,), epochs=2, out=str(tmp_path / "values"), plot=True)
    check_files(tmp_path / "values" / "plots", {"curves", "regression", "boundary"})


@pytest.mark.long
def test_many_kinds(tmp_path: Path) -> None:
    """What the runs above don't have: colours, many classes, many runs, single examples."""
    rng = np.random.default_rng(0)
    p, labels = rng.dirichlet(np.ones(3), 400), rng.integers(0, 3, 400)
    x = rng.normal(size=(400, 2))
    images = rng.integers(0, 256, (400, 3, 16, 16)).astype(np.uint8)
    with style():
        for channels, shape in ((1, (28, 28)), (3, (3, 32, 32))):
            found = find_filters({"conv1.weight": rng.normal(size=(90, channels, 5, 5))}, shape, 10, 64)
            save(draw_filters(found), tmp_path, f"filters{channels}")
        few = find_filters({"conv1.weight": rng.normal(size=(1, 1, 3, 3))}, (8, 8), 10, 64)
        save(draw_filters(few), tmp_path, "filter")
        for most in (1, 80):
            mistakes = misclassified.find_mistakes("test", p, labels, Task("classification", 3), most)
            figure = misclassified.draw_mistakes(mistakes, images[mistakes.chosen], (3, 16, 16))
            save(figure, tmp_path, f"misclassified{most}")
        for classes in (2, 15, 70):
            counts = rng.poisson(1.0, (classes, classes)) + np.diag([20] * classes)
            save(confusion.draw_confusion(confusion.Confusion("validation", counts)), tmp_path, f"confusion{classes}")
        found = boundary.find_boundary(
            x, labels, Task("classification", 3), lambda rows: np.exp(-np.square(rows[:, :1] - [-1, 0, 1]))
        )
        save(boundary.draw_boundary(found), tmp_path, "boundary")
        records = [{"step": 10 * n, "epoch": n, "train_loss": 5.0**-n} for n in range(1, 5)]
        many = [run_of(Path(f"/runs/{n}"), TrainConfig(seed=n), records, None) for n in range(9)]
        save(draw_curves(many, CurveOptions()), tmp_path, "curves")
    kinds = ["filters1", "filters3", "filter", "misclassified1", "misclassified80", "boundary", "curves"]
    check_files(tmp_path, {*kinds, "confusion2", "confusion15", "confusion70"})


def test_nothing_wrong_and_no_examples_of_a_class() -> None:
    with style():
        figure = confusion.draw_confusion(confusion.Confusion("test", np.diag([3, 0, 5])))
    written = [text.get_text() for text in figure.axes[1].texts]
    assert written == ["0.0", "no examples", "0.0"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["3", "5"]


def test_no_class_is_missed_more_than_always() -> None:
    with style():
        bars = confusion.draw_confusion(confusion.Confusion("test", np.array([[4, 0], [4, 0]]))).axes[1]
    assert bars.get_xlim()[1] > 100.0  # space for the number after the bar
    assert max(bars.get_xticks()) <= 100.0
    assert min(bars.get_xticks()) == 0.0


def test_matplotlib_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_installed()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'distsgd\[plot\]'"):
        check_installed()
    with pytest.raises(ConfigurationError, match="not installed"):
        distsgd.fit("mlp", digits(), out=str(tmp_path / "run"), plot=True)
    assert not (tmp_path / "run").exists(), "told before training"


def test_fit_draws_only_into_a_folder() -> None:
    with pytest.raises(ConfigurationError, match="out="):
        distsgd.fit("mlp", digits(), plot=True)


def test_two_threads_leave_the_settings_of_matplotlib_as_they_were() -> None:
    """matplotlib has one set of them: what a second thread found inside of the first one's style would stay."""
    import matplotlib

    before, inside, first_is_out = dict(matplotlib.rcParams), threading.Event(), threading.Event()

    def draw() -> None:
        with style():
            inside.set()
            first_is_out.wait(10)

    thread = threading.Thread(target=draw)
    with style():
        thread.start()
        inside.wait(0.2)
    first_is_out.set()
    thread.join()
    assert dict(matplotlib.rcParams) == before


def test_without_plot_matplotlib_is_not_imported() -> None:
    code = (
        "import sys, numpy as np, distsgd, distsgd.train, distsgd.plot, distsgd.run.pictures\n"
        "x = np.random.default_rng(0).normal(size=(40, 3)); distsgd.fit('mlp', (x, x[:, 0]), epochs=1)\n"
        "print('matplotlib' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_users_own_style_stays_as_it_is() -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 23.0}):
        before = dict(matplotlib.rcParams)
        with style():
            assert matplotlib.rcParams["font.size"] < 23
        assert dict(matplotlib.rcParams) == before


def test_a_folder_that_cannot_be_written(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file")
    with pytest.raises(RunFolderError, match="could not write pictures into"):
        draw_run(stored_material(read_run(runs / "a")), tmp_path / "plots", Choices())


def test_choices_of_the_command() -> None:
    options = options_of(plot.Options)
    assert options["only"].choices == PICTURES
    assert options["split"].choices == SPLITS
    for line, words in (("--only filter", "only: expected one of"), ("--split all", "split: expected one of"),
                        ("--examples 0", "examples: expected a whole number"), ("--axis seconds", "axis: expected"),
                        ("--filters 401", "filters: expected a whole number"), ("--score loss", "score: expected"),
                        ("--loss-scale logit", "loss_scale: expected one of")):  # fmt: skip
        with pytest.raises(ConfigurationError, match=words):
            parse_arguments(plot.Options, ["a", *line.split()], "plot")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected the folder of a run"), (["nowhere"], "nowhere is no run folder"),
        (["empty"], "there is no config.toml"), (["begun"], "has no records for curves yet"),
        (["damaged"], "line 2 is no record"), (["RUN", "begun"], "begun has no records"),
        (["RUN", "--only", "boundary"], "have not two inputs"), (["RUN", "--only", "curve"], "only: expected one of"),
        (["RUN", "--examples", "many"], "--examples"), (["RUN", "--filter", "3"], "did you mean --filters"),
        (["RUN", "RUN", "--only", "filters"], "several runs share"),
        (["RUN", "--loss-scale", "big"], "loss_scale: expected one of"),
        (["RUN", "--only", "curves", "--only", "filters"], "--only is given 2 times"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_reported_in_one_sentence(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("begun", "damaged"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text("epochs = 3\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged" / "metrics.jsonl").write_text('{"step": 1, "epoch": 0}\nx\n')
    with pytest.raises(DistsgdError, match=re.escape(words)) as caught:
        draw(parse_arguments(plot.Options, [str(runs / "a") if name == "RUN" else name for name in arguments], "plot"))
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
