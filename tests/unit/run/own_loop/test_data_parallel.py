"""DataParallel in one process and on ranks that are threads: the bits of fit, what it refuses, and how it continues."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd import DataParallel, optim
from distsgd.core.errors import ConfigurationError, DataError, NonFiniteError, RunFolderError
from distsgd.parallel import Communicator
from tests.parallel.two_layer_net import TwoLayerNet, X, Y
from tests.threads import run_on_threads


def net() -> TwoLayerNet:
    return TwoLayerNet(12, 20, 4)


def of(params: Mapping[str, Any], x: Any, y: Any, penalty: float = 0.0, total: bool = False) -> Any:
    """The tutorial's loss with these parameters."""
    one = net()
    one.params = params
    return one.loss(x, y, penalty, total)


def means(params: Any, batch: Any) -> Any:
    return of(params, batch.x, batch.y, 0.01)


def sums(params: Any, batch: Any) -> Any:
    return of(params, batch.x, batch.y, total=True)


def sha(params: Mapping[str, Any]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(one).tobytes() for one in params.values())).hexdigest()


def make(optimizer: Any = None, **options: Any) -> DataParallel:
    return DataParallel(
        net().params, optimizer or distsgd.Momentum(0.1), **{"reduction": "mean", "microbatches": 4, **options}
    )


def go(dp: DataParallel, function: Any = means, epochs: int = 2, **options: Any) -> list[float]:
    return [dp.step(function, batch) for batch in dp.batches(X, Y, batch_size=64, epochs=epochs, **options)]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_bits_of_fit(reduction: str) -> None:
    def function(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        scale = len(batch) if reduction == "mean" else 1
        loss, found = of(params, batch.x.T, batch.y, total=reduction == "sum")
        for name, gradient in found.items():
            grads[name] = gradient * scale
        return loss * scale, len(batch)

    options: dict[str, Any] = {"microbatches": 4, "seed": 3, "dtype": "float64", "clip_norm": 0.5}
    expected = distsgd.fit(
        function, X, Y, params=net().params, optimizer=distsgd.Adam(0.01), schedule="cosine", epochs=3,
        batch_size=64, **options,
    )  # fmt: skip
    dp = make(distsgd.Adam(0.01), reduction=reduction, schedule="cosine", **options)
    losses = go(dp, sums if reduction == "sum" else lambda params, batch: of(params, batch.x, batch.y), 3)
    assert sha(dp.params) == sha(expected.params)
    assert losses[-1] < losses[0]


def test_the_same_bits_on_any_number_of_ranks(tmp_path: Path) -> None:
    def train(communicator: Communicator) -> tuple[Any, ...]:
        dp = make(communicator=communicator, clip_norm=1.0)
        losses = go(dp)
        accuracy = dp.mean(lambda params, batch: of_scores(params, batch.x) == batch.y, X, Y)
        return sha(dp.params), losses, accuracy, sha(dp.state_dict() | {"document": np.zeros(1)})

    alone = train(run_on_threads(1, lambda communicator: communicator)[0])
    for size in (2, 3, 4):
        assert run_on_threads(size, train) == [alone] * size


def of_scores(params: Any, x: Any) -> Any:
    one = net()
    one.params = params
    return one.scores(x)[1].argmax(axis=1)


def test_its_mean_is_the_mean() -> None:
    dp = make()
    go(dp)
    expected = float(np.mean(of_scores(dp.params, X) == Y))
    assert dp.mean(lambda params, batch: of_scores(params, batch.x) == batch.y, X, Y) == pytest.approx(expected)


def test_arrays_arrive_as_they_are_stored() -> None:
    tokens, floats = np.arange(40, dtype=np.int16).reshape(20, 2), np.ones((20, 3, 2), np.float32)
    seen = []

    def look(params: Any, batch: Any) -> Any:
        seen.append((batch.x["tokens"], batch.x["floats"], batch.y, batch.weights, batch.indices))
        return float(batch.weights.sum()), {"w": np.full(2, batch.weights.sum())}

    dp = DataParallel({"w": np.zeros(2)}, distsgd.SGD(0.1), reduction="sum", microbatches=2)
    weights = np.linspace(1, 2, 20)
    for batch in dp.batches({"tokens": tokens, "floats": floats}, tokens, weights=weights, batch_size=8, epochs=1):
        assert batch.x["tokens"].tolist() == tokens[batch.indices].tolist()
        assert (batch.y == batch.x["tokens"]).all()
        assert len(batch.weights) == len(batch) == len(batch.indices)
        dp.step(look, batch)
    for one, other, y, part, rows in seen:
        assert (one.dtype, other.dtype, other.shape[1:]) == (np.int16, np.float32, (3, 2))
        assert (one == tokens[rows]).all()
        assert (y == one).all()
        assert (part == weights[rows]).all()
    assert sorted(np.concatenate([rows for *_, rows in seen[:1] + seen[2:]]).tolist()) == list(range(20))


@pytest.mark.parametrize(
    ("function", "declared", "words"),
    [
        (sums, "mean", "double: it returns sums; give reduction='sum', got 'mean'"),
        (means, "sum", "stay as they are: it returns means; give reduction='mean', got 'sum'"),
        (lambda params, batch: of(params, batch.x, batch.y, 0.1, total=True), "sum", "a penalty beside a sum"),
    ],
)
def test_a_wrong_declaration_of_sum_or_mean(function: Any, declared: str, words: str) -> None:
    def train(communicator: Communicator) -> str:
        dp = make(reduction=declared, communicator=communicator)
        with pytest.raises(ConfigurationError) as error:
            go(dp, function)
        assert dp.steps == 0
        return str(error.value)

    found = run_on_threads(3, train)
    assert len(set(found)) == 1
    assert words in found[0]
    if "penalty" in words:
        go(make(reduction=declared, check_reduction=False), function)


def test_dropout_by_random_words_passes() -> None:
    def dropped(params: Any, batch: Any) -> Any:
        mask = batch.random_words(batch.x.size, "dropout").reshape(batch.x.shape) < 0.8 * 2**64
        return of(params, batch.x * mask, batch.y)

    assert len(go(make(), dropped)) == 8


WRONG_FUNCTIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "nothing": (lambda params, batch: None, "must return (loss, gradients)"),
    "no gradient": (lambda params, batch: 1.0, "must return (loss, gradients)"),
    "losses": (lambda params, batch: (np.ones(3), means(params, batch)[1]), "must return one number as the loss"),
    "a name less": (lambda params, batch: (1.0, {"W1": params["W1"]}), "no gradient of b1, W2, b2"),
    "a name more": (lambda params, batch: (1.0, {**params, "W9": 0.0}), "a gradient of W9"),
    "a shape": (lambda params, batch: (1.0, {**params, "W1": np.zeros(3)}), "the gradient of W1 must be numbers of sh"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FUNCTIONS)
def test_what_a_function_may_not_return(name: str) -> None:
    function, words = WRONG_FUNCTIONS[name]
    with pytest.raises(ConfigurationError) as error:
        go(make(), function)
    assert words in str(error.value)


def test_a_batch_that_is_not_finite_may_be_skipped() -> None:
    x = X.copy()
    x[17] = np.nan

    def train(communicator: Communicator) -> tuple[str, int, int]:
        dp, problems = make(communicator=communicator), []
        for batch in dp.batches(x, Y, batch_size=64, epochs=1):
            try:
                dp.step(means, batch)
            except NonFiniteError as error:
                problems.append(str(error))
        assert all(np.isfinite(one).all() for one in dp.params.values())
        return *problems, dp.steps, len(problems)

    found = run_on_threads(2, train)
    assert found[0] == found[1]
    assert "17" in found[0][0]
    assert found[0][1:] == (4, 1)


def test_an_error_of_one_rank_is_raised_on_all() -> None:
    def train(communicator: Communicator) -> str:
        def failing(params: Any, batch: Any) -> Any:
            if batch.microbatch == 3:  # of the last rank
                raise KeyError("mine")
            return means(params, batch)

        with pytest.raises(KeyError, match="mine"):
            go(make(communicator=communicator), failing)
        return "ended"

    assert run_on_threads(3, train) == ["ended"] * 3


def test_ranks_that_do_different_things_get_a_sentence() -> None:
    def train(communicator: Communicator) -> list[str]:
        found = []

        def attempt(wrong: Callable[[DataParallel], Any]) -> None:
            dp = make(communicator=communicator)
            with pytest.raises(ConfigurationError) as error:
                wrong(dp)
            found.append(str(error.value))

        def skips(dp: DataParallel) -> None:
            for batch in dp.batches(X, Y, batch_size=64, epochs=1):
                if batch.step != 1 or communicator.rank != 1:
                    dp.step(means, batch)

        def breaks(dp: DataParallel) -> None:
            for batch in dp.batches(X, Y, batch_size=64, epochs=1):
                dp.step(means, batch)
                if communicator.rank == 1:
                    break
            dp.state_dict()

        def stale(dp: DataParallel) -> None:
            for batch in dp.batches(X, Y, batch_size=64, epochs=1):
                dp.step(means, batch)
                if communicator.rank == 1:
                    dp.step(means, batch)

        for wrong in (skips, breaks):
            attempt(wrong)
        with pytest.raises((ConfigurationError, DataError)) as error:
            go(make(communicator=communicator), seed=communicator.rank)
        found.append(str(error.value))
        with pytest.raises(ConfigurationError) as error:
            make(communicator=communicator, clip_norm=1.0 + communicator.rank)
        return [*found, str(error.value)]

    found = run_on_threads(2, train)
    assert found[0] == found[1]
    assert found[0][0].startswith("ranks make different calls: rank 0 step at batch 2, rank 1 step at batch 3")
    assert found[0][1].startswith("ranks make different calls: rank 0 step at batch 2, rank 1 state_dict at batch 2")
    assert found[0][2].startswith("batches: seed differs between ranks: 0 on rank 0, 1 on rank 1")
    assert found[0][3].startswith("DataParallel: clip_norm differs between ranks: 1.0 on rank 0, 2.0 on rank 1")


def test_batches_out_of_order() -> None:
    dp, other = make(), make()
    batches = dp.batches(X, Y, batch_size=64, epochs=1)
    first = next(batches)
    with pytest.raises(ConfigurationError, match="expected a batch that batches"):
        dp.step(means, X)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="expected a function"):
        dp.step(first, means)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="of another DataParallel"):
        other.step(means, first)
    dp.step(means, first)
    with pytest.raises(ConfigurationError, match="batch number 1 has had its step"):
        dp.step(means, first)
    second = next(batches)
    assert (next(batches).step, dp.steps) == (2, 2)  # the second one is skipped
    with pytest.raises(ConfigurationError, match="batch number 2 is not the one that is due, number 3"):
        dp.step(means, second)
    again = dp.batches(X, Y, batch_size=64, epochs=1)
    assert next(again).step == 2
    with pytest.raises(ConfigurationError, match="another call of batches has begun"):
        next(batches)
    go(dp, epochs=1)
    with pytest.raises(ConfigurationError, match="all 1 epochs are made"):
        go(dp, epochs=1)
    with pytest.raises(ConfigurationError, match="the data are other ones"):
        dp.batches(X + 1, Y, batch_size=64, epochs=2)
    with pytest.raises(ConfigurationError, match="batch_size was 64, is now 32"):
        dp.batches(X, Y, batch_size=32, epochs=2)
    with pytest.raises(ValueError, match="read-only"):
        dp.params["W1"][0] = 1
    dp.close()
    with pytest.raises(ConfigurationError, match="is closed"):
        go(dp, epochs=2)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"reduction": "average"}, "expected 'sum' or 'mean'"),
        ({"optimizer": "sdg"}, "sdg"),
        ({"optimizer": 0.1}, "optimizer must be distsgd's Optimizer"),
        ({"microbatches": 0}, "microbatches"),
        ({"lr": 0.1}, "lr is the optimizer's"),
        ({"dtype": "float16"}, "expected float32 or float64, got float16"),
        ({"schedule": 3}, "schedule must be a Schedule"),
        ({"communicator": 3}, "communicator must be one of mpi4py's"),
    ],
)
def test_settings_that_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        make(**wrong)
    assert words in str(error.value)
    with pytest.raises(ConfigurationError, match="must be an array of floats"):
        DataParallel({"w": [1, 2]}, "sgd", reduction="sum")
    with pytest.raises(ConfigurationError, match="nested parameters get flat names"):
        DataParallel({"layer": {"w": np.ones(2)}}, "sgd", reduction="sum")
    with pytest.raises(TypeError, match="reduction"):
        DataParallel({"w": np.ones(2)}, "sgd")  # type: ignore[call-arg]


def test_an_optimizer_as_a_class_or_a_name() -> None:
    expected = make(distsgd.Adam(0.02))
    go(expected)
    for given in (optim.Adam, "adam"):
        dp = make(given, lr=0.02)
        go(dp)
        assert sha(dp.params) == sha(expected.params)


def test_weights_need_sums() -> None:
    with pytest.raises(ConfigurationError, match="weights need reduction='sum'"):
        make().batches(X, Y, weights=np.ones(len(X)), batch_size=64, epochs=1)


def test_save_and_resume(tmp_path: Path) -> None:
    whole = make(distsgd.Adam(0.01), schedule="cosine")
    losses = go(whole, epochs=3)
    first = make(distsgd.Adam(0.01), schedule="cosine")
    assert not first.resume(tmp_path)
    for batch in first.batches(X, Y, batch_size=64, epochs=3):
        first.step(means, batch)
        if first.steps == 6:
            first.save(tmp_path)
        if first.steps == 7:
            break  # it dies

    def rest(communicator: Communicator) -> tuple[Any, ...]:
        dp = make(distsgd.Adam(0.01), schedule="cosine", communicator=communicator)
        assert dp.resume(tmp_path)
        assert dp.steps == 6
        return go(dp, epochs=3), sha(dp.params)

    assert run_on_threads(2, rest) == [(losses[6:], sha(whole.params))] * 2
    kept = first.state_dict()
    second = make(distsgd.Adam(0.01), schedule="cosine")
    second.load_state_dict(kept)
    assert go(second, epochs=3) == losses[7:]
    assert sha(second.params) == sha(whole.params)


def test_what_does_not_resume(tmp_path: Path) -> None:
    dp = make()
    go(dp, epochs=1)
    dp.save(tmp_path)
    dp.save(tmp_path)
    with pytest.raises(RunFolderError, match="began with optimizer Momentum"):
        make(distsgd.SGD(0.1)).resume(tmp_path)
    with pytest.raises(RunFolderError, match="holds checkpoints of another run"):
        make().save(tmp_path)
    other = make()
    assert other.resume(tmp_path)
    assert list(other.batches(X, Y, batch_size=64, epochs=1)) == []  # all are made
    with pytest.raises(ConfigurationError, match="the data are other ones"):
        other.batches(X, Y[::-1], batch_size=64, epochs=2)
    with pytest.raises(ConfigurationError, match="expected what state_dict returns"):
        other.load_state_dict({})
    from distsgd.run.fit import fit

    run = fit("softmax", X, Y, epochs=1, out=str(tmp_path / "run"))
    assert run.params
    with pytest.raises(RunFolderError, match="is of fit or of the command line"):
        make().resume(tmp_path / "run")


def test_a_horizon_of_a_schedule_stays() -> None:
    dp = make(schedule="cosine")
    go(dp, epochs=1)
    with pytest.raises(ConfigurationError, match="was made for 1 epochs, got 2"):
        go(dp, epochs=2)


def test_one_that_is_forgotten_gives_threads_back_at_any_moment() -> None:
    """The collector may find it anywhere, also where another one begins."""

    for _ in range(20):
        dp = make()
        circle = [dp]
        circle.append(circle)  # type: ignore[arg-type]
        del dp, circle
        thresholds = gc.get_threshold()
        gc.set_threshold(1)
        try:
            make().close()
        finally:
            gc.set_threshold(*thresholds)
