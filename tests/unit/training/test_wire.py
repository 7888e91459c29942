"""Runs with --wire bfloat16: what is computed, the same bits on any ranks and hosts, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, RunFolderError
from distsgd.core.random import normal
from distsgd.parallel import Communicator
from distsgd.run.config import TrainConfig, resolved
from distsgd.run.trained.trained_model import Result
from tests.cases import first_of
from tests.strict_device import StrictModule, strict_device
from tests.threads import run_on_threads

X = normal((301, 24), 1, "x").astype(np.float32)
Y = np.argmax(X[:, :5], axis=1)
ROUNDED: dict[str, Any] = {"wire": "bfloat16"}


def train(hosts: str = "a", **options: Any) -> list[Result]:
    """fit on as many thread ranks as there are letters, each the name of a rank's host."""
    given = {"epochs": 2, "batch_size": 100, "hidden": (300, 70), "validation_fraction": 0.2, **ROUNDED, **options}

    def rank(communicator: Communicator) -> Result:
        return distsgd.fit("mlp", (X, Y), communicator=communicator, **given)

    return run_on_threads(len(hosts), rank, tuple(hosts))


def hashes(results: list[Result]) -> set[str]:
    return {result.summary["parameters_sha256"] for result in results}


def bfloat16(values: Array) -> Array:
    """Rounded as the definition says: a multiple of the distance of neighbours, which float64 divides and rounds."""
    exact = values.astype(np.float64)
    step = 2.0 ** (np.frexp(exact)[1] - 8)
    return np.where(exact == 0, exact, np.rint(exact / step) * step).astype(np.float32)


OPTIONS: dict[str, dict[str, Any]] = {
    "usual": {},
    "clipped Adam": {"optimizer": "adam", "clip_norm": 0.1, "l2": 1e-3, "dropout": 0.2},
    "norms of layers": {"optimizer": "lars", "batch_norm": True, "batch_size": 70, "weight_decay": 0.01},
    "guarded": {"on_non_finite": "skip", "optimizer": "adamw", "threads": 2},
}


@pytest.mark.parametrize("options", list(OPTIONS.values()), ids=list(OPTIONS))
def test_the_same_bits_on_any_ranks_and_hosts(options: dict[str, Any]) -> None:
    alone = train(microbatches=8, **options)
    found = [train(hosts, microbatches=8, **options) for hosts in ("aa", "aaaa", "ab", "aabb")]
    assert len(hashes([*alone, *(one for results in found for one in results)])) == 1
    records = [[{k: v for k, v in one.items() if k != "run"} for one in ran[0].history] for ran in (alone, *found)]
    assert all(one == records[0] for one in records)
    finer = [train(hosts, microbatches=8, wire_groups=8, **options) for hosts in ("a", "aaabbcc")]
    finer.append(train("aaa", microbatches=8, wire_groups=8, communication="mpi", **options))
    assert len(hashes([one for results in finer for one in results])) == 1
    assert hashes(finer[0]) != hashes(alone)


def test_a_run_continues_on_others_as_if_nothing_had_happened(tmp_path: Path) -> None:
    options: dict[str, Any] = {"microbatches": 8, "optimizer": "adam", "batch_norm": True, "epochs": 4}
    whole = train(**options)
    for steps, hosts in ((3, "aabb"), (5, "a"), (7, "ab"), (None, "aaa")):
        last = train(hosts, out=str(tmp_path / "run"), max_steps=steps, **options)
    assert hashes(last) == hashes(whole)
    with pytest.raises(RunFolderError, match="wire"):
        train(out=str(tmp_path / "run"), wire="float32", **options)
    with pytest.raises(RunFolderError, match="wire_groups"):
        train(out=str(tmp_path / "run"), wire_groups=4, **options)


def test_a_step_beside_its_definition() -> None:
    """One update of plain SGD: the groups' gradients are rounded, their sum isn't, and the parameters are."""
    start, seen = normal((24,), 2, "w").astype(np.float32), list[tuple[Array, Array]]()

    def squares(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        errors = params["w"] @ batch.x - batch.y.astype(np.float32)
        grads["w"] = batch.x @ errors
        seen.append((np.array(params["w"]), np.array(grads["w"])))
        return 0.5 * float(errors @ errors), len(batch)

    result = distsgd.fit(
        squares, (X[:64], Y[:64]), params={"w": start}, optimizer=distsgd.SGD(0.1), batch_size=64, microbatches=4,
        threads=1, max_steps=1, validation_fraction=0, wire="bfloat16", wire_groups=2,
    )  # fmt: skip
    computed_with, gradients = zip(*seen[-4:], strict=True)
    assert all(params.tobytes() == bfloat16(start).tobytes() for params in computed_with)
    first, second = bfloat16(gradients[0] + gradients[1]), bfloat16(gradients[2] + gradients[3])
    mean = (first + second) / np.float32(64)
    wanted = bfloat16(start - np.float32(0.1) * mean)
    assert result.params["w"].tobytes() == wanted.tobytes()


def test_updates_smaller_than_a_rounding_are_not_lost() -> None:
    """64 updates of 1/4096 from 1.0, where the next lower bfloat16 number is 1 - 1/256."""

    def constant(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        grads["w"] = np.full(1, len(batch), np.float32)
        return float(params["w"][0]) * len(batch), len(batch)

    def run(hosts: str) -> list[float]:
        def rank(communicator: Communicator) -> float:
            result = distsgd.fit(
                constant, (X[:8], Y[:8]), params={"w": np.ones(1, np.float32)}, optimizer=distsgd.SGD(2.0**-12),
                epochs=64, batch_size=8, validation_fraction=0, communicator=communicator, **ROUNDED,
            )  # fmt: skip
            return float(result.params["w"][0])

        return run_on_threads(len(hosts), rank, tuple(hosts))

    assert [*run("a"), *run("ab")] == [1 - 64 / 4096] * 3


def test_the_model_is_what_was_scored(tmp_path: Path) -> None:
    """All parameters are bfloat16 numbers, frozen ones too; the summary says so, and the folder has the same model."""
    result = train(out=str(tmp_path / "run"), freeze=("dense1.*",))[0]
    assert all(array.tobytes() == bfloat16(array).tobytes() for array in result.params.values())
    assert (result.summary["wire"], result.summary["wire_groups"]) == ("bfloat16", 2)
    loaded = distsgd.load(tmp_path / "run")
    assert all(loaded.params[name].tobytes() == array.tobytes() for name, array in result.params.items())
    exact = train(wire="float32")[0].summary
    assert not {"wire", "wire_groups"} & set(exact)


def test_large_numbers_round_to_infinity_and_are_reported() -> None:
    """Sums beyond the largest bfloat16 number, which float32 still holds."""

    def huge(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        grads["w"] = np.full(1, 3.4e38, np.float32)
        return 0.0, len(batch)

    options: dict[str, Any] = {
        "params": {"w": np.ones(1, np.float32)}, "optimizer": distsgd.SGD(0.0), "batch_size": 8, "max_steps": 3,
        "microbatches": 1, "validation_fraction": 0,
    }  # fmt: skip
    distsgd.fit(huge, (X[:8], Y[:8]), **options)
    with pytest.raises(distsgd.NonFiniteError, match="the update is not finite, though the gradients are"):
        distsgd.fit(huge, (X[:8], Y[:8]), wire="bfloat16", wire_groups=1, **options)


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ({"wire": "float16"}, "wire: expected one of float32, bfloat16, got 'float16'"),
        ({"wire_groups": 2}, "wire_groups: goes with --wire bfloat16 alone; leave it out, or give both"),
        ({**ROUNDED, "dtype": "float64"}, "wire bfloat16: goes with --dtype float32 alone, got float64"),
        ({**ROUNDED, "wire_groups": 3}, "wire_groups: expected a power of two, of at most 4 microbatches, got 3"),
        ({**ROUNDED, "wire_groups": 8}, "wire_groups: expected a power of two, of at most 4 microbatches, got 8"),
        ({**ROUNDED, "wire_groups": 0}, "wire_groups: expected a whole number, at least 1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], printed: str) -> None:
    with pytest.raises(ConfigurationError, match=printed):
        TrainConfig(**options)


def test_the_number_of_groups_is_written_out() -> None:
    assert resolved(TrainConfig(**ROUNDED)).wire_groups == 2
    assert resolved(TrainConfig(**ROUNDED, wire_groups=4)).wire_groups == 4
    assert resolved(TrainConfig()).wire_groups is None
    assert len({resolved(TrainConfig(**one)).name() for one in ({}, ROUNDED, {**ROUNDED, "wire_groups": 4})}) == 3
    with pytest.raises(ConfigurationError, match="of at most 1 microbatches, got 2"):
        resolved(TrainConfig(**ROUNDED, microbatches=1))


@pytest.mark.parametrize(
    ("hosts", "options"), first_of([("abb", {}), ("aaaa", {"communication": "mpi"}), ("abcd", {})])
)
def test_a_host_with_a_part_of_a_group_is_refused(hosts: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="wire_groups 2: expected ranks that share memory to compute whole gr"):
        train(hosts, **options)


@pytest.mark.stand_in
def test_gpus_are_refused() -> None:
    printed = "wire bfloat16: rounds in the host's memory, and this run computes on"
    with strict_device(StrictModule()), pytest.raises(ConfigurationError, match=printed):
        train(device="gpu")
