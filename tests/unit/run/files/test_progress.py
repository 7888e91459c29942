"""The rows of a run, and what it prints last: their widths, their digits, and each way in which a run can end."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd import Callback, fit
from distsgd.core.output import COLUMNS, field, field_of_path, number
from distsgd.run.files.progress import Table
from distsgd.run.files.summary import last_line
from distsgd.run.trained.trained_model import Result
from distsgd.training.callbacks import RunView

finite = st.floats(-1e300, 1e300)


def run_of(epochs: int, steps_per_epoch: int = 7) -> RunView:
    return RunView(lambda: 0, steps_per_epoch, epochs * steps_per_epoch, lambda: None)


def record(epoch: int, best: bool = False, **scores: float) -> dict[str, Any]:
    scores = scores or {"train_loss": 0.5, "validation_loss": 0.25, "validation_accuracy": 0.75}
    last = {"run": {"examples_per_second": 12345.6}} | ({"best": True} if best else {})
    return {"step": 7 * epoch, "epoch": epoch, **scores, **last}


def rows(epochs: int, records: list[dict[str, Any]], steps_per_epoch: int = 7) -> list[str]:
    """What is printed, the header's two lines first."""
    lines: list[str] = []
    shown = Table(lines.append)
    shown.on_start(run_of(epochs, steps_per_epoch))
    for one in records:
        shown.on_record(one)
    shown.on_end({})
    shown.close()
    return lines


def epochs_of(lines: list[str]) -> list[int]:
    return [int(line.split()[0]) for line in lines if line.split()[0].isdecimal()]


@given(finite | st.just(0.0))
def test_four_digits_in_ten_characters(value: float) -> None:
    text = number(value)
    assert len(text) <= 10
    assert float(text) == pytest.approx(value, rel=6e-4 if len(f"{value:.4g}") <= 10 else 6e-3)
    assert (float(text) == 0) == (value == 0)


def test_numbers_by_hand() -> None:
    values = (0.98333, 0.9, 1.66e-05, 0.00012346, 2, 1234.5678, 9999.9, 1e4, 12345.678, 0, -1.2e-100, float("nan"))
    assert [*map(number, values)] == [
        "0.9833", "0.9000", "1.660e-05", "0.0001235", "2.000", "1235", "1.000e+04", "1.000e+04", "1.235e+04", "0",
        "-1.20e-100", "nan",
    ]  # fmt: skip
    assert [number(value) for value in (7.2e-05, 5.63e-05, 8.175e-05)] == ["7.200e-05", "5.630e-05", "8.175e-05"]


def test_a_table() -> None:
    scores = {"train_loss": 1.66e-05, "validation_loss": 0.25, "validation_accuracy": 0.5, "validation_error": 0.5}
    later = record(2, best=True, **scores, test_loss=0.125, test_accuracy=0.875)
    assert rows(9, [record(1, **scores), later]) == [
        "                 train validation validation",
        "epoch  step       loss       loss   accuracy  examples/s",
        "    1     7  1.660e-05     0.2500     0.5000      12,346",
        "                 train validation validation       test       test",
        "epoch  step       loss       loss   accuracy   accuracy       loss  examples/s",
        "    2    14  1.660e-05     0.2500     0.5000     0.8750     0.1250      12,346 *",
    ]


def test_r2_and_own_metrics_come_before_what_is_left() -> None:
    scores = dict.fromkeys(("train_loss", "validation_loss", "validation_mean_squared_error", "validation_r2"), 0.5)
    first, second = rows(1, [record(1, best=True, **scores, test_loss=0.5, test_r2=0.5)])[:2]
    assert first.split() == ["train", *["validation"] * 3, "test"]
    assert second.split() == ["epoch", "step", "loss", "loss", "r2", "MSE", "r2", "examples/s"]
    own = record(1, train_loss=0.5, validation_loss=0.5, validation_f1=0.5)
    assert rows(1, [own])[1].split() == ["epoch", "step", "loss", "loss", "f1", "examples/s"]


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["validation", "test"]), st.text("abc_", min_size=1, max_size=30)).map("_".join),
        st.floats(), max_size=8,
    ),
    st.integers(1, 10**9), st.integers(1, 10**4),
)  # fmt: skip
def test_rows_have_80_columns_at_most(scores: dict[str, float], epochs: int, steps: int) -> None:
    last = {**record(epochs, best=True, train_loss=-1.234e-100, **scores), "step": epochs * steps}
    lines = rows(epochs, [record(1), last], steps)
    assert max(map(len, lines)) <= COLUMNS
    assert lines[-1].split()[:2] == [str(epochs), str(epochs * steps)]


@pytest.mark.parametrize("epochs", [1, 200, 201, 1000, 12345])
def test_at_most_200_rows_of_an_undisturbed_run(epochs: int) -> None:
    shown = epochs_of(rows(epochs, [record(epoch) for epoch in range(1, epochs + 1)]))
    assert len(shown) <= 200
    assert len(shown) >= min(epochs, 66)
    assert shown[-1] == epochs
    assert len(set(np.diff(shown[:-1]))) <= 1, "every k-th"


def records_of(epochs: int, steps: int, every: int, best: int) -> list[dict[str, Any]]:
    """A record every so many steps and at the end of each epoch; each best-th one is the best so far."""
    at = [step for step in range(1, epochs * steps + 1) if step % every == 0 or step % steps == 0]
    return [record(step // steps, best=number % best == 0) | {"step": step} for number, step in enumerate(at)]


@pytest.mark.parametrize("best", [1, 7, 10**9])
@pytest.mark.parametrize(
    ("epochs", "steps", "every"), [(20, 1000, 10), (100, 7, 1), (150, 7, 1), (1, 5000, 1), (300, 10, 3), (3, 67, 1)]
)
def test_at_most_200_rows_where_an_epoch_has_many_records(epochs: int, steps: int, every: int, best: int) -> None:
    records = records_of(epochs, steps, every, best)
    assert len(records) > 200
    lines = rows(epochs, records, steps)
    shown = [int(line.split()[1]) for line in lines if line.split()[0].isdecimal()]
    assert 50 <= len(shown) <= 201
    assert shown[-1] == records[-1]["step"]
    assert shown == sorted(set(shown))
    if epochs <= 100:
        assert {epoch * steps for epoch in range(1, epochs + 1)} <= set(shown), "the end of each epoch"
    best_one = max(record["step"] for record in records if record.get("best"))
    assert best_one in shown


@pytest.mark.parametrize(("epochs", "steps", "every"), [(1, 200, 1), (60, 10, 5), (200, 7, 7), (2, 1000, 10)])
def test_up_to_200_records_are_all_shown(epochs: int, steps: int, every: int) -> None:
    records = records_of(epochs, steps, every, 7)
    shown = [line for line in rows(epochs, records, steps) if line.split()[0].isdecimal()]
    assert [int(line.split()[1]) for line in shown] == [record["step"] for record in records]


def test_the_best_so_far_is_always_there() -> None:
    """Where each epoch is better than the one before, the last one between two rows; never more than 200 rows."""
    every = rows(1000, [record(epoch, best=True) for epoch in range(1, 1001)])
    assert len(epochs_of(every)) <= 200
    few = {33, 34, 57, 507}
    shown = rows(1000, [record(epoch, best=epoch in few) for epoch in range(1, 604)])
    assert epochs_of(shown) == sorted({*range(10, 601, 10), 34, 57, 507, 603})
    assert epochs_of([line for line in shown if line.endswith("*")]) == [34, 57, 507]


def test_what_a_rollback_undoes_is_not_shown_later() -> None:
    lines: list[str] = []
    shown = Table(lines.append)
    shown.on_start(run_of(1000))
    for epoch in (1, 2, 3):
        shown.on_record(record(epoch, best=True))
    shown.on_rollback(14)
    shown.close()
    assert epochs_of(lines) == []


X = np.random.default_rng(0).normal(size=(60, 4))
Y = (X[:, 0] > 0).astype(np.int64)


def train(**options: Any) -> Result:
    return fit("softmax", (X, Y), **{"epochs": 3, "batch_size": 20, "validation_fraction": 0.25, **options})


class Stop(Callback):
    def on_start(self, run: RunView) -> None:
        run.stop()


ENDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "epochs": ({}, "completed: 3 epochs, 9 steps", "the last of 3 epochs is done"),
    "steps": ({"max_steps": 4}, "completed: 1 epoch, 4 steps", "the last of 4 steps is done"),
    "target": (
        {"target": "validation_accuracy=0.01"}, "completed: 1 epoch, 3 steps", "validation accuracy has reached 0.01",
    ),
    "early": (
        {"patience": 2, "learning_rate": 1e-12, "epochs": 9, "min_delta": 0.125, "monitor": "validation_loss"},
        "early_stopped: 3 epochs, 9 steps",
        "no validation loss better by more than 0.125 in 2 epochs; --patience 0 turns this off",
    ),
    "early, between epochs": (
        {"patience": 2, "learning_rate": 1e-12, "validate_every": "1", "monitor": "validation_accuracy"},
        "early_stopped: 1 epoch, 3 steps",
        "no better validation accuracy in 2 validations; --patience 0 turns this off",
    ),
    "patience rule": (
        {"early_stopping": "patience", "patience": 5, "learning_rate": 1e-12},
        "early_stopped: 2 epochs, 6 steps",
        "no much better validation error within the patience of 5 steps",
    ),
    "time": ({"max_time": "0s"}, "stopped: 0 epochs, 1 step; the same command continues", "its time is over"),
    "asked": (
        {"callbacks": [Stop()]}, "stopped: 0 epochs, 1 step; the same command continues",
        "a signal or a callback asked for it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_each_way_to_end_says_why(end: str) -> None:
    options, status, reason = ENDS[end]
    result = train(**options)
    lines = last_line(result.summary, "runs/a", quiet=False).split("\n")
    assert lines[-1] == status
    assert lines[-2] == "run        runs/a"
    assert lines[-3] == f"sha256     {result.summary['parameters_sha256']}"
    assert lines[: lines.index(next(line for line in lines if line.startswith("training")))] == field("because", reason)
    assert max(map(len, lines)) <= COLUMNS
    line = last_line(result.summary, "runs/a", quiet=True)
    assert line.startswith(f"{status}; because {reason}; training loss ")
    assert line.endswith(f"; parameters_sha256 {result.summary['parameters_sha256']} (runs/a)")
    assert "\n" not in line


def test_scores_are_said_with_their_epoch() -> None:
    """R² and errors of a regression, of validation and test, at the best epoch and not at the last."""
    y = X @ np.array([1.0, -2.0, 0.5, 0.0])
    result = fit(
        "mlp", (X, y), test=(X, y), epochs=30, batch_size=20, patience=3, validation_fraction=0.25, hidden=(9,)
    )
    best = result.summary["best_epoch"]
    assert best < result.summary["epochs"]
    text = last_line(result.summary, "runs/a", quiet=True)
    assert f"; scores of epoch {best} (step {best * 3}), whose parameters are kept; validation loss " in text
    record = result.history[best - 1]
    assert f"r2 {number(record['validation_r2'])}; test loss" in text
    assert f"r2 {number(record['test_r2'])}; parameters_sha256" in text
    nothing = fit("softmax", (X, Y), epochs=1, validation_fraction=0)
    assert "scores" not in last_line(nothing.summary, "runs/a", quiet=True)


def test_fit_prints_where_it_is_asked_to(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a terminal: rows, and no bar."""
    for options in ({}, {"quiet": True}):
        train(**options)
        assert capfd.readouterr() == ("", "")
    train(quiet=False)
    out, err = capfd.readouterr()
    assert epochs_of(out.splitlines()) == [1, 2, 3]
    assert "\x1b" not in out + err


NOTEBOOK = {
    "ipykernel.py": "",
    "IPython/__init__.py": "",
    "IPython/display.py": """
inside, outside = [], []  # what a widget and what the page shows
def display(shown):
    from ipywidgets import Output
    (inside if Output.entered else outside).append(shown)
""",
    "ipywidgets.py": """
class Output:
    entered, closed = 0, False
    def __enter__(self):
        Output.entered += 1
    def __exit__(self, *error):
        Output.entered -= 1
    def clear_output(self, wait):
        pass
    def close(self):
        self.closed = True
""",
}
"""Stand-ins for what a notebook has."""


def test_in_a_notebook_rows_are_plain_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing but the bar's widget is displayed, and it is closed at the end."""
    pytest.importorskip("rich")
    for name, text in NOTEBOOK.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for module in ("ipykernel", "IPython", "IPython.display", "ipywidgets"):
        monkeypatch.setitem(sys.modules, module, None)  # the test leaves what it finds
        del sys.modules[module]
    monkeypatch.syspath_prepend(tmp_path)
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr("builtins.get_ipython", lambda: shell, raising=False)
    import_module("ipykernel")
    page = import_module("IPython.display")
    train(quiet=False)
    assert epochs_of(capsys.readouterr().out.splitlines()) == [1, 2, 3]
    assert page.inside
    (widget,) = page.outside
    assert widget.closed


def test_a_long_text_keeps_its_ends() -> None:
    words = [f"word{number}" for number in range(99)]
    lines = field("model", " ".join(words))
    assert len(lines) == 4
    assert max(map(len, lines)) <= COLUMNS
    assert lines[0].startswith("model      word0 word1 ")
    assert lines[2].strip() == "…"
    assert lines[3].endswith(" word98")


def test_fit_says_what_it_chose_and_why_it_ended_where_it_is_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    options: dict[str, Any] = {"epochs": 40, "patience": 2, "learning_rate": 0.0, "validation_fraction": 0.1}
    fit("softmax", (x, np.arange(60) % 3), quiet=False, **options)
    lines = capsys.readouterr().out.splitlines()
    assert "validation 6 of 60 training examples: --validation-fraction 0.1, --seed 0, of" in lines
    assert "early stop no better validation error in 2 epochs; --patience 0 turns this off" in lines
    assert "because    no better validation error in 2 epochs; --patience 0 turns this off" in lines
    assert lines[-1] == "early_stopped: 3 epochs, 3 steps"
    fit("softmax", (x, np.arange(60) % 3), **options)
    assert capsys.readouterr().out == ""


def on_screen(text: str) -> int:
    """Columns, by the table of another package."""
    return int(pytest.importorskip("rich.cells").cell_len(text))


@given(st.text(st.sampled_from("ab /名前ｗé́-"), max_size=400))
def test_no_line_of_a_field_is_wider_than_80_columns(text: str) -> None:
    lines = field("data", text)
    assert max(map(on_screen, lines)) <= COLUMNS
    assert 1 <= len(lines) <= 4
    if not any("…" in line for line in lines):
        assert "".join(line[11:] for line in lines).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("letter", ["x", "名"])
def test_a_long_path_loses_its_middle(letter: str) -> None:
    text = f"/data/{letter * 150}.npz: 60 examples"
    first, second = field("data", text)
    assert first.startswith(f"data       /data/{letter}")
    assert "…" in first
    assert first.endswith(f"{letter}.npz:")
    assert COLUMNS - 2 <= on_screen(first) <= COLUMNS
    assert second == f"{'':11}60 examples"


def test_the_folder_of_wide_characters_gets_its_own_line() -> None:
    assert field_of_path("run", "名" * 34) == [f"run        {'名' * 34}"]
    assert field_of_path("run", "名" * 35) == ["run", "名" * 35]


def test_scores_with_wide_names_stay_in_their_columns() -> None:
    shown = rows(1, [record(1, train_loss=0.5, validation_loss=0.5, validation_正確な正解率=0.5)])
    assert [on_screen(line.rpartition(" ")[0].rstrip()) for line in shown[:3]][1:] == [44, 44]
    assert "正確…解率" in shown[1]
