"""Functions of a user's that keep state, or leave gradients unwritten, on any number of ranks and threads."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cases import first_of
from tests.parallel.launch import Done, run_command

STATEFUL = """
import sys

import numpy as np

import distsgd

cache, inside, overlaps = {}, [0], [0]


def loss_and_grad(params, grads, batch):
    inside[0] += 1
    overlaps[0] += inside[0] > 1
    cache["h"] = params["W1"] @ batch.x
    h = np.maximum(cache["h"], 0)
    o = params["W2"] @ h
    p = np.exp(o - o.max(0))
    p /= p.sum(0)
    n = len(batch)
    i = np.arange(n)
    loss = -np.log(p[batch.y, i]).sum()
    p[batch.y, i] -= 1
    grads["W2"] = p @ h.T
    grads["W1"] = ((params["W2"].T @ p) * (cache["h"] > 0)) @ batch.x.T
    inside[0] -= 1
    return float(loss), n


rng = np.random.default_rng(0)
x = rng.normal(size=(3000, 200)).astype("f4")
y = (x[:, 0] > 0).astype(int)
first = {"W1": rng.normal(size=(400, 200)) / 14, "W2": rng.normal(size=(2, 400)) / 20}
options = {} if sys.argv[1] == "default" else {"threads": int(sys.argv[1])}
result = distsgd.fit(
    loss_and_grad, (x, y), params=first, optimizer=distsgd.SGD(0.05), epochs=1, batch_size=1000, **options
)
assert overlaps == [0], overlaps
if distsgd.is_root():
    print(result.summary["parameters_sha256"])
"""

CONDITIONAL = """
import numpy as np

import distsgd

x = np.random.default_rng(0).normal(size=(200, 5))
y = (x[:, 0] > 0).astype(int)


def hinge(params, grads, batch):
    t = 2.0 * batch.y - 1
    margin = 1 - t * (params["w"] @ batch.x + params["b"])
    pull = np.where(margin > 0, -t, 0)
    grads["w"][...] = batch.x @ pull
    if pull.any() and batch.step < 3:
        grads["b"] = pull.sum()
    return float(np.maximum(margin, 0).sum()), len(batch)


result = distsgd.fit(
    hinge, (x, y), params={"w": np.zeros(5), "b": np.zeros(())}, epochs=3, batch_size=50, optimizer=distsgd.SGD(0.1),
    shuffle=False, validation_fraction=0, dtype="float64", threads=2,
)
if distsgd.is_root():
    print(result.summary["parameters_sha256"], float(result.params["b"]), *result.params["w"].tolist())
"""

WRONG = """
import numpy as np

import distsgd


def function(params, grads, batch):
    grads["w"] = np.zeros(3)
    return 0.0, len(batch)


distsgd.fit(function, (np.zeros((40, 2)), np.zeros(40)), params={"w": np.zeros(2)})
"""


def run(folder: Path, text: str, ranks: int | None, *arguments: object) -> Done:
    (folder / "program.py").write_text(text)
    return run_command(ranks, [sys.executable, "program.py", *map(str, arguments)], folder)


def test_a_function_that_keeps_state(tmp_path: Path) -> None:
    runs = [(None, 1), (None, 2), (None, "default"), (2, "default")]
    done = [run(tmp_path, STATEFUL, *one) for one in runs]
    assert [one.status for one in done] == [0] * len(runs), [one.err for one in done]
    assert len({line for one in done for line in one.out.split()}) == 1
    assert "note: only one of the 2 threads" in done[1].err


def by_hand() -> list[float]:
    """The same training in a loop of NumPy's: b, then w."""
    x = np.random.default_rng(0).normal(size=(200, 5))
    t = np.where(x[:, 0] > 0, 1.0, -1.0)
    w, b = np.zeros(5), 0.0
    for step in range(12):
        part = slice(step % 4 * 50, step % 4 * 50 + 50)
        pull = np.where(1 - t[part] * (x[part] @ w + b) > 0, -t[part], 0.0)
        w, b = w - 0.1 * pull @ x[part] / 50, b - 0.1 * (pull.sum() / 50 if step < 3 else 0.0)
    return [b, *w.tolist()]


@pytest.mark.long
def test_a_gradient_that_is_left_unwritten(tmp_path: Path) -> None:
    done = [run(tmp_path, CONDITIONAL, ranks) for ranks in (None, 1, 2, 4)]
    assert [one.status for one in done] == [0] * 4, [one.err for one in done]
    assert len({one.out for one in done}) == 1
    np.testing.assert_allclose([float(word) for word in done[0].out.split()[1:]], by_hand(), rtol=1e-10)


@pytest.mark.parametrize("ranks", first_of([2, None]))
def test_a_gradient_of_another_shape(tmp_path: Path, ranks: int | None) -> None:
    done = run(tmp_path, WRONG, ranks)
    assert "w: expected a value of shape (2,), got (3,)" in done.err
    assert done.err.count("Traceback") <= 1
    assert done.status != 0
