"""--plot and the command plot: on rank 0 alone, never in the way of training, with one sentence for what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.parallel.launch import ROOT, ends_with, module, summary, train

OWN = '''
import atexit
import os
import sys

import distsgd
from distsgd.cli.commands import launcher_rank


def reported():
    with open(os.path.join(os.environ["TEST_TOLD"], f"rank{launcher_rank()}"), "w") as file:
        file.write(str("matplotlib" in sys.modules))


def model(shape, outputs):
    """Softmax regression that, as its rank ends, writes whether matplotlib was imported there."""
    if "TEST_TOLD" in os.environ:
        atexit.register(reported)
    return distsgd.Sequential([distsgd.Dense(shape[0] * shape[1], outputs)])
'''
QUICK = ("--hidden", 16, "--batch-size", 200, "--epochs", 2)
PICTURES = {"curves", "filters", "confusion", "misclassified"}


def drawn(folder: Path) -> set[str]:
    """The pictures in a folder, each there twice."""
    names = [path.stem for path in folder.iterdir() if path.suffix in (".png", ".svg") and path.stat().st_size > 5000]
    assert len(names) == 2 * len(set(names))
    return set(names)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was drawn as it ended, on two ranks."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(2, out, *QUICK, "--plot")
    return out


@pytest.fixture
def without_matplotlib(tmp_path: Path) -> dict[str, str]:
    """An environment in which matplotlib can't be imported."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    return {"PYTHONPATH": os.pathsep.join([str(hook), str(ROOT)])}


@pytest.mark.long
@pytest.mark.parametrize("plot", [True, False])
def test_rank_0_alone_imports_matplotlib(tmp_path: Path, plot: bool) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "reported").mkdir()
    options = ("--model", "own.py:model", "--epochs", 1, *(["--plot"] if plot else []))
    done = train(2, tmp_path / "run", *options, extra={"TEST_TOLD": str(tmp_path / "reported")})
    reported = {path.name: path.read_text() for path in (tmp_path / "reported").iterdir()}
    assert reported == {"rank0": str(plot), "rank1": "False"}
    assert (tmp_path / "run" / "plots").exists() == plot
    assert (f"{tmp_path / 'run' / 'plots'}: curves, filters, confusion, misclassified" in done.out) == plot
    assert done.out.splitlines()[-1].startswith("completed: 1 epoch")


@pytest.mark.long
def test_the_command_draws_the_same_later(trained: Path, tmp_path: Path) -> None:
    assert drawn(trained / "plots") == PICTURES
    for ranks in (None, 2):
        done = module(ranks, "plot", tmp_path, trained, "--out", tmp_path / f"{ranks}")
        assert (done.status, done.err) == (0, "")
        assert done.out == "".join(
            f"{tmp_path / f'{ranks}' / name}.png and .svg\n"
            for name in ("curves", "filters", "confusion", "misclassified")
        )
        for path in (trained / "plots").iterdir():
            assert path.read_bytes() == (tmp_path / f"{ranks}" / path.name).read_bytes(), path.name


@pytest.mark.long
def test_several_runs(trained: Path, tmp_path: Path) -> None:
    train(None, tmp_path / "other", *QUICK, "--optimizer", "adam")
    done = module(None, "plot", tmp_path, trained, "other", "--score", "error", "--axis", "steps")
    assert (done.status, done.out) == (0, "plots/curves.png and .svg\n"), done.text
    assert drawn(tmp_path / "plots") == {"curves"}


@pytest.mark.long
def test_plotting_changes_nothing(trained: Path, tmp_path: Path) -> None:
    train(None, tmp_path / "run", *QUICK)
    assert summary(tmp_path / "run") == summary(trained)
    assert (tmp_path / "run" / "config.toml").read_text() == (trained / "config.toml").read_text()


@pytest.mark.long
def test_a_run_that_is_finished_is_drawn(tmp_path: Path) -> None:
    train(None, tmp_path / "run", *QUICK, "--quiet")
    done = train(2, tmp_path / "run", *QUICK, "--plot")
    assert drawn(tmp_path / "run" / "plots") == PICTURES
    assert done.out.splitlines()[-1].startswith("completed: 2 epochs")


@pytest.mark.long
def test_stopped_and_stopped_early(tmp_path: Path) -> None:
    done = train(2, tmp_path / "stopped", *QUICK, "--plot", "--max-time", "0.001s", status=75)
    assert drawn(tmp_path / "stopped" / "plots") == PICTURES - {"curves"}
    assert "curves skipped" in done.err
    assert done.err.count("\n") == 1
    early = ("--epochs", 30, "--patience", 1, "--lr", 0)
    train(None, tmp_path / "early", *QUICK, *early, "--plot")
    assert summary(tmp_path / "early")["status"] == "early_stopped"
    assert drawn(tmp_path / "early" / "plots") == PICTURES


def test_a_failure_to_draw_is_one_line(tmp_path: Path) -> None:
    train(None, tmp_path / "run", *QUICK, "--max-steps", 3)
    (tmp_path / "run" / "plots").write_text("a file")
    done = train(2, tmp_path / "run", *QUICK, "--plot")
    assert summary(tmp_path / "run")["status"] == "completed"
    assert done.err.startswith("warning: plot: could not write pictures into ")
    assert done.err.count("\n") == 1
    assert done.out.splitlines()[-1].startswith("completed: 2 epochs")


@pytest.mark.long
def test_matplotlib_is_missing(trained: Path, tmp_path: Path, without_matplotlib: dict[str, str]) -> None:
    done = train(2, tmp_path / "run", *QUICK, "--plot", status=2, extra=without_matplotlib)
    ends_with(done, "pip install 'distsgd[plot]'")
    assert not (tmp_path / "run").exists(), "told before training"
    done = module(None, "plot", tmp_path, trained, extra=without_matplotlib)
    ends_with(done, "pip install 'distsgd[plot]'")
    assert done.status == 2
    train(None, tmp_path / "run", *QUICK, extra=without_matplotlib)


@pytest.mark.long
def test_own_code_runs_only_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    train(None, tmp_path / "run", "--model", "own.py:model", "--epochs", 1)
    done = module(None, "plot", tmp_path, "run")
    assert done.status == 0
    assert drawn(tmp_path / "run" / "plots") == PICTURES - {"misclassified"}
    assert "to run that code, add --model own.py:model" in done.err
    done = module(None, "plot", tmp_path, "run", "--model", "own.py:model", "--only", "misclassified")
    assert (done.status, done.err) == (0, "")
    assert drawn(tmp_path / "run" / "plots") == PICTURES


@pytest.mark.long
def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    wider = OWN.replace(
        "[distsgd.Dense(shape[0] * shape[1], outputs)]", "[distsgd.Dense(64, 3), distsgd.Dense(3, outputs)]"
    )
    (tmp_path / "other.py").write_text(wider)
    train(None, tmp_path / "run", "--model", "own.py:model", "--epochs", 1)
    done = module(None, "plot", tmp_path, "run", "--model", "other.py:model", "--only", "misclassified")
    assert done.status == 1
    ends_with(done, "written for another model")


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["nowhere"], "nowhere is no run folder"), (["TRAINED", "--split", "test"], "has validation, train, got 'test'")],
)
def test_what_is_wrong_is_reported_once(trained: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    done = module(2, "plot", tmp_path, *(str(trained) if name == "TRAINED" else name for name in arguments))
    assert set(done.statuses.values()) == {2}
    ends_with(done, words)
