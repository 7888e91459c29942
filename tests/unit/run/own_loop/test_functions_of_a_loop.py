"""The function of a DataParallel's steps: the same on all ranks and after a resume, and rightly declared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd import DataParallel
from distsgd.core.errors import ConfigurationError, NonFiniteError, RunFolderError
from distsgd.parallel import Communicator
from distsgd.run.comparison import compare
from distsgd.run.picture_material import read_run
from tests.threads import run_on_threads

X = np.random.default_rng(0).normal(size=(32, 3))
Y = X @ np.array([1.0, -2.0, 0.5]) + np.arange(32) % 3
LOOP = """
import numpy as np

RATE = {rate}
beta = 0.0


def of_line(params, batch):
    error = batch.x @ params["w"] + params["b"] - batch.y
    return {half} * np.mean(error**2), {{"w": batch.x.T @ error / len(batch), "b": error.mean()}}


def loss_and_grad(params, batch):
    loss, grads = of_line(params, batch)
    return RATE * loss + 0 * beta, {{name: RATE * grad for name, grad in grads.items()}}
"""


def program(folder: Path, rate: float = 1.0, half: float = 0.5) -> dict[str, Any]:
    """The names of a user's file, with its source where Python finds it."""
    file = folder / f"loop_{rate}_{half}.py"
    file.write_text(LOOP.format(rate=rate, half=half))
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(file.read_text(), str(file), "exec"), names)
    return names


def make(reduction: Any = "mean", **options: Any) -> DataParallel:
    return DataParallel({"w": np.zeros(3), "b": np.zeros(())}, distsgd.SGD(0.1), reduction=reduction, **options)


def go(dp: DataParallel, function: Any, epochs: int = 1) -> list[float]:
    return [dp.step(function, batch) for batch in dp.batches(X, Y, batch_size=8, epochs=epochs)]


def test_another_function_does_not_continue_a_run(tmp_path: Path) -> None:
    first, runs = make(), tmp_path / "runs"
    go(first, program(tmp_path)["loss_and_grad"])
    first.save(runs)

    def attempt(function: Any, **options: Any) -> list[float]:
        dp = make()
        assert dp.resume(runs, **options)
        return go(dp, function, 2)

    expected = go(first, program(tmp_path)["loss_and_grad"], 2)
    same = program(tmp_path)
    assert attempt(same["loss_and_grad"]) == expected
    wrapped = lambda params, batch: same["loss_and_grad"](params, batch)  # noqa: E731 (a function of another name)
    for changed, words in (
        (program(tmp_path, rate=2.0)["loss_and_grad"], r"different: \(global RATE\)\)"),
        (program(tmp_path, half=0.25)["loss_and_grad"], r"different: \(global of_line\)\)"),
        (wrapped, "different: its name"),
    ):
        with pytest.raises(RunFolderError, match=words):
            attempt(changed)
        if changed is not wrapped:
            assert attempt(changed, check_function=False) != expected
    state, other = first.state_dict(), make()
    other.load_state_dict(state)
    with pytest.raises(RunFolderError, match="check_function=False"):
        go(other, wrapped, 3)


def test_what_changes_from_step_to_step_is_not_compared(tmp_path: Path) -> None:
    names, dp = program(tmp_path), make()
    for batch in dp.batches(X, Y, batch_size=8, epochs=1):
        names["beta"] = float(batch.step)
        dp.step(lambda params, part, now=batch.step: names["loss_and_grad"](params, part), batch)
    dp.save(tmp_path / "runs")
    for batch in dp.batches(X, Y, batch_size=8, epochs=2):
        dp.step(program(tmp_path)["of_line"], batch)  # a second function, which the next attempt may leave out
    dp.save(tmp_path / "runs")
    after = make()
    assert after.resume(tmp_path / "runs")
    for batch in after.batches(X, Y, batch_size=8, epochs=3):
        after.step(lambda params, part, now=batch.step: names["loss_and_grad"](params, part), batch)


def test_ranks_with_different_functions() -> None:
    def train(communicator: Communicator) -> str:
        def plain(params: Any, batch: Any) -> Any:
            error = batch.x @ params["w"] - batch.y
            return 0.5 * np.mean(error**2), {"w": batch.x.T @ error / len(batch), "b": 0.0}

        def scaled(params: Any, batch: Any) -> Any:
            return tuple(plain(params, batch))

        dp = make(communicator=communicator)
        with pytest.raises(ConfigurationError) as error:
            go(dp, scaled if communicator.rank else plain)
        assert dp.steps == 0
        with pytest.raises(ConfigurationError, match=r"communicator.rank\) differs between ranks: 0 on rank 0, 1 on"):
            go(dp, lambda params, batch: communicator.rank)
        return str(error.value)

    first, second = run_on_threads(2, train)
    assert first == second
    assert first.startswith("step: loss_and_grad itself differs between ranks")


def later(change: Callable[[float, dict[str, Any], Any], Any]) -> Any:
    def function(params: Any, batch: Any) -> Any:
        error = batch.x @ params["w"] + params["b"] - batch.y
        grads = {"w": batch.x.T @ error / len(batch), "b": error.mean()}
        return change(float(0.5 * np.mean(error**2)), grads, batch)

    return function


def double(grads: dict[str, Any], batch: Any, *names: str) -> dict[str, Any]:
    """The gradients of these names as sums, and in the first step zero."""
    scale = len(batch) if batch.step else 0
    return {name: grad * scale if name in names else grad for name, grad in grads.items()}


WRONG = {
    "a mean, and gradients that are sums": (
        lambda loss, grads, batch: (loss, double(grads, batch, "w", "b")), "the gradient of b doubles"),
    "one that is a sum": (lambda loss, grads, batch: (loss, double(grads, batch, "w")), "the gradient of w doubles"),
    "sums": (
        lambda loss, grads, batch: (loss * len(batch) * (batch.step > 0), double(grads, batch, "w", "b")),
        "it returns sums; give reduction='sum'"),
    "of a fixed size": (
        lambda loss, grads, batch: (batch.x.reshape(2, 3) is None, grads), "failed with each example of a microbatch"),
    "random": (
        lambda loss, grads, batch: (loss * np.random.default_rng().random(), grads), "it returns something else each"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_declaration_that_the_first_step_does_not_show(name: str) -> None:
    change, words = WRONG[name]
    with pytest.raises(ConfigurationError) as error:
        go(make(microbatches=4), later(change))
    assert words in str(error.value)


def test_rounding_near_an_optimum_is_no_wrong_declaration() -> None:
    """There the gradient is a small difference of large numbers, and each order of the examples rounds otherwise."""
    for seed in range(8):
        random = np.random.default_rng(seed)
        x = random.normal(size=(64, 3)).astype(np.float32)
        y = (1000 + random.normal(size=64)).astype(np.float32)
        w = np.linalg.lstsq(x, y, rcond=None)[0].astype(np.float32)

        def gradient(params: Any, batch: Any) -> Any:
            error = batch.x @ params["w"] - batch.y
            return 0.5 * np.mean(error**2), {"w": batch.x.T @ error / np.float32(len(batch))}

        dp = DataParallel({"w": w}, distsgd.SGD(1e-3), reduction="mean", microbatches=1)
        for batch in dp.batches(x, y, batch_size=64, epochs=3):
            dp.step(gradient, batch)


def test_a_call_inside_of_another_is_refused() -> None:
    dp = make()

    def measures(params: Any, batch: Any) -> Any:
        dp.mean(lambda params, batch: batch.y, X, Y)

    with pytest.raises(ConfigurationError, match="is in a call already"):
        go(dp, measures)
    assert len(go(dp, later(lambda loss, grads, batch: (loss, grads)))) == 4


def test_an_update_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    dp = DataParallel({"w": np.ones(3)}, distsgd.SGD(1e308), reduction="mean")

    def steep(params: Any, batch: Any) -> Any:
        return 1.0, {"w": np.full(3, 1e200)}

    batches = dp.batches(X, Y, batch_size=8, epochs=1)
    dp.step(steep, next(batches))
    with pytest.raises(NonFiniteError, match=r"at step 1; .* continue from a checkpoint"):
        dp.step(steep, next(batches))
    with pytest.raises(NonFiniteError):
        dp.save(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_global_batch_is_for_reading() -> None:
    dp = make()
    batch = next(dp.batches(X, Y, batch_size=8, epochs=1))
    with pytest.raises(ValueError, match="read-only"):
        batch.x[0] = 0
    with pytest.raises(AttributeError):
        batch.y = batch.y + 1  # type: ignore[misc]


def test_a_saved_loop_is_no_run_to_plot_or_compare(tmp_path: Path) -> None:
    dp = make()
    dp.save(tmp_path)
    for read in (lambda: compare([str(tmp_path)]), lambda: read_run(tmp_path)):
        with pytest.raises(RunFolderError, match=r"holds checkpoints alone, as DataParallel\.save writes them"):
            read()


@pytest.mark.parametrize("hosts", [("a", "a", "a"), ("a", "b", "b")], ids=["memory", "messages"])
def test_ranks_in_different_objects_get_a_sentence(hosts: tuple[str, ...]) -> None:
    """Whether what they are about to do is compared in shared memory or in messages."""

    def train(communicator: Communicator) -> str:
        function = later(lambda loss, grads, batch: (loss, grads))
        both = [make(communicator=communicator, microbatches=3) for _ in range(2)]
        batches = [dp.batches(X, Y, batch_size=8, epochs=1) for dp in both]
        for dp, those in zip(both, batches, strict=True):
            dp.step(function, next(those))
        mine = int(communicator.rank > 0)
        batch = next(batches[mine])
        with pytest.raises(ConfigurationError) as error:
            both[mine].step(function, batch)
        for dp, those, one in zip(both, batches, (batch, batch), strict=True):
            dp.step(function, one if dp is both[mine] else next(those))  # they go on
        return str(error.value).partition(";")[0]

    found = run_on_threads(3, train, hosts)
    expected = "rank 0 step at batch 2 of DataParallel number 1, ranks 1 and 2 step at batch 2 of DataParallel number 2"
    assert found == [f"ranks make different calls: {expected}"] * 3
