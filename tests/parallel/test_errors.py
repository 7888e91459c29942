"""What goes wrong is reported once, in one line, with one exit status on every rank, and soon."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cases import first_of
from tests.parallel.launch import ends_with, module, summary, train

QUICK = ("--epochs", 1, "--hidden", 8)

# Line numbers matter: `boom` is reported with its own line.
MODELS = """
import numpy as np

import distsgd
from distsgd import FunctionObjective


def boom(params, grads, batch):
    grads["w"][...] = 1.0
    if batch.step == 2 and batch.microbatch == 3:
        raise ZeroDivisionError("the user's own mistake")
    return 1.0 * len(batch), len(batch)


def raising(shape, outputs):
    return FunctionObjective(boom, {"w": np.zeros(5)})


def nan(params, grads, batch):
    grads["w"][...] = 1.0
    return (float("nan") if batch.step == 1 and batch.microbatch == 2 else 1.0), len(batch)


def not_finite(shape, outputs):
    return FunctionObjective(nan, {"w": np.zeros(5)})


def counting_nothing(shape, outputs):
    return FunctionObjective(lambda params, grads, batch: (1.0, 0), {"w": np.zeros(5)})


def returning_one_number(shape, outputs):
    return FunctionObjective(lambda params, grads, batch: 1.0, {"w": np.zeros(5)})


def not_a_model(shape, outputs):
    return 42


def wrong_width(shape, outputs):
    return distsgd.Sequential([distsgd.Dense(64, outputs + 1)])


def failing_builder(shape, outputs):
    raise KeyError("in the builder")


def flat_metric(outputs, y):
    return np.zeros(3)


class Stop(distsgd.Callback):
    def on_step(self, step, loss, examples):
        if step == 2:
            raise distsgd.core.errors.ConfigurationError("the callback had enough")


class Broken(distsgd.Callback):
    def on_step(self, step, loss, examples):
        if step == 3:
            raise IndexError("in the callback")


class BrokenRecord(distsgd.Callback):
    def on_record(self, record):
        raise IndexError("in the callback")


NOT_A_CALLBACK = 7
"""


# The first nine, each found at another point of a run's beginning, are tried on several ranks.
USAGE: dict[str, tuple[tuple[object, ...], str]] = {
    "unknown option": (("--epoch", 3), "--epochs"),
    "missing data": (("--dataset", "missing.npz"), "missing.npz"),
    "unknown monitor": (("--monitor", "validation_los"), "validation_los"),
    "more ranks than microbatches": (("--microbatches", 2), "--microbatches 3"),
    "not a model": (("--model", "models.py:not_a_model"), "int"),
    "not a callback": (("--callback", "models.py:NOT_A_CALLBACK"), "int"),
    "idle pattern": (("--freeze", "conv1.*"), "dense1.weight"),
    "unknown target": (("--target", "validation_acc=1"), "validation_acc"),
    "unknown device": (("--device", "tpu"), "gpu:N"),
    "not a number": (("--epochs", "many"), "epochs"),
    "unknown optimizer": (("--optimizer", "sdg"), "sgd"),
    "unknown model": (("--model", "mpl"), "mlp"),
    "unknown data set": (("--dataset", "digit"), "did you mean digits?"),
    "missing data folder": (("--dataset", "mnist", "--data-dir", "nowhere"), "nowhere"),
    "missing configuration": (("--config", "missing.toml"), "missing.toml"),
    "missing code": (("--model", "missing.py:f"), "missing.py"),
    "missing function": (("--model", "models.py:missing"), "missing"),
    "a model of another width": (("--model", "models.py:wrong_width"), "(11,)"),
    "unknown metric": (("--monitor", "validation_f1_error"), "validation_loss"),
    "bad time": (("--max-time", "soon"), "max_time"),
    "bad initializer": (("--weight-initializer", "ones(3"), "ones(3"),
    "patience rule on accuracy": (
        ("--early-stopping", "patience", "--monitor", "validation_accuracy"), "validation_accuracy"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


@pytest.mark.parametrize("case", first_of(USAGE, 2))
def test_usage(folder: Path, case: str) -> None:
    options, reported = USAGE[case]
    ranks = 3 if list(USAGE).index(case) < 9 else None
    ends_with(train(ranks, folder / "run", *QUICK, *options, status=2), reported)


@pytest.mark.parametrize(
    ("text", "reported"),
    first_of(
        [
            ("epoch = 3", "did you mean epochs?"),
            ("epochs = ", "TOML"),
            ("epochs = 'three'", "expected a whole number, got 'three'"),
            ("[train]\nepochs = 3", "train"),
            ("model = 'models.py:raising'", "--model models.py:raising"),
            ("callback = ['models.py:Stop']", "--callback models.py:Stop"),
            ("batch_size = 0", "batch_size"),
        ]
    ),
)
def test_configuration_files(folder: Path, text: str, reported: str) -> None:
    (folder / "run.toml").write_text(text)
    ranks = 2 if text == "epoch = 3" else None
    ends_with(train(ranks, folder / "run", "--config", "run.toml", status=2), reported)


@pytest.mark.parametrize("ranks", first_of([4, None, 1]))
def test_users_exception(folder: Path, ranks: int | None) -> None:
    done = train(ranks, folder / "run", "--model", "models.py:raising", status=1)
    assert done.err.count("Traceback (most recent call last)") == 1
    assert done.err.count("ZeroDivisionError: the user's own mistake") == 1
    assert "models.py" in done.err
    assert 'raise ZeroDivisionError("the user\'s own mistake")' in done.err
    owner = (ranks or 1) - 1  # microbatch 3 is the last rank's
    assert done.err.startswith(f"distsgd: error: the model failed on rank {owner} (")
    assert "step 3, microbatch 3" in done.err


def test_loss_that_is_not_finite(folder: Path) -> None:
    ends_with(train(2, folder / "run", "--model", "models.py:not_finite", status=1), "nan at step 2, microbatch 2")
    reported = summary(folder / "run")
    assert reported["status"] == "failed"
    assert "nan at step 2" in reported["error"]


@pytest.mark.long
def test_loss_that_diverges(folder: Path) -> None:
    done = train(2, folder / "run", *QUICK, "--optimizer", "sgd", "--lr", 1e30, status=1)
    ends_with(done, "a smaller learning rate")
    assert "Warning" not in done.text


@pytest.mark.parametrize(
    ("name", "reported"), first_of([("counting_nothing", "counted 0"), ("returning_one_number", "float")])
)
def test_loss_functions_that_return_something_else(folder: Path, name: str, reported: str) -> None:
    done = train(2, folder / "run", "--model", f"models.py:{name}", status=1 if name.startswith("c") else 2)
    ends_with(done, reported)


@pytest.mark.long
def test_builder_that_raises(folder: Path) -> None:
    done = train(2, folder / "run", "--model", "models.py:failing_builder", status=1)
    assert done.err.count("KeyError: 'in the builder'") == 1


def test_code_that_does_not_import(folder: Path) -> None:
    (folder / "broken.py").write_text("import nothing_of_this_name\n")
    done = train(2, folder / "run", "--model", "broken.py:f", status=1)
    assert done.err.count("ModuleNotFoundError") == 1


@pytest.mark.long
def test_metric_of_another_length(folder: Path) -> None:
    done = train(2, folder / "run", *QUICK, "--metric", "models.py:flat_metric", status=2)
    ends_with(done, "flat_metric")


def test_callback_that_gives_a_reason(folder: Path) -> None:
    ends_with(train(2, folder / "run", *QUICK, "--callback", "models.py:Stop", status=2), "had enough")


@pytest.mark.parametrize("hook", first_of(["Broken", "BrokenRecord"]))
def test_callback_with_a_mistake(folder: Path, hook: str) -> None:
    done = train(2, folder / "run", *QUICK, "--callback", f"models.py:{hook}", status=1)
    assert done.err.count("Traceback (most recent call last)") == 1
    assert done.err.count("IndexError: in the callback") == 1


@pytest.mark.long
def test_callback_with_a_mistake_at_the_last_step(folder: Path) -> None:
    done = train(2, folder / "run", *QUICK, "--max-steps", 3, "--callback", "models.py:Broken", status=1)
    assert done.err.count("IndexError: in the callback") == 1


@pytest.mark.parametrize(
    ("arrays", "reported"),
    first_of(
        [
            ({"x": np.full((8, 3), np.nan), "y": np.zeros(8, int)}, "example 0 holds nan"),
            ({"x": np.zeros((8, 3)), "y": np.zeros(7, int)}, "7"),
            ({"x": np.zeros((8, 3)), "y": np.full(8, -1)}, "-1"),
            ({"a": np.zeros(3)}, "expected the arrays x and y"),
        ]
    ),
)
def test_data(folder: Path, arrays: dict[str, np.ndarray], reported: str) -> None:
    np.savez(folder / "data.npz", **arrays)
    ranks = 3 if "nan" in reported else None
    ends_with(train(ranks, folder / "run", "--dataset", "data.npz", status=2), reported)


def test_run_folder_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").write_text("not a folder")
    done = module(2, "train", folder, "--out", "file/run", *QUICK)
    assert set(done.statuses.values()) == {2}
    ends_with(done, "--out")


def test_foreign_folder_is_left_alone(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").write_text("years")
    ends_with(train(2, folder / "mine", *QUICK, status=2), "--out")
    assert [path.name for path in (folder / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("name", "arguments", "reported"),
    first_of(
        [
            ("evaluate", ("nowhere", "--dataset", "digits"), "nowhere"),
            ("predict", ("nowhere", "in.npz", "-o", "out.npz"), "nowhere"),
            ("predict", (), "RUN"),
        ]
    ),
)
def test_other_commands(folder: Path, name: str, arguments: tuple[str, ...], reported: str) -> None:
    done = module(2, name, folder, *arguments)
    assert done.status == 2
    assert set(done.statuses.values()) == {done.status}
    ends_with(done, reported)


@pytest.mark.parametrize("name", first_of(["train", "evaluate", "predict"]))
def test_help_is_printed_once(folder: Path, name: str) -> None:
    done = module(2, name, folder, "--help")
    assert done.status == 0
    assert done.out.count("usage: python -m distsgd.") == 1
    assert done.err == ""


@pytest.mark.long
def test_version(folder: Path) -> None:
    done = module(2, "train", folder, "--version")
    assert done.status == 0
    assert done.out.startswith("distsgd ")
    assert done.out.count("\n") == 1


def test_dry_run_leaves_nothing(folder: Path) -> None:
    done = train(2, folder / "run", *QUICK, "--dry-run")
    assert "model      mlp 64-8-10 relu: 610 parameters" in done.out
    assert not (folder / "run").exists()
