"""The guard: what it says of made-up recordings, and that real ones are equal when nothing has changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.guard import __main__ as guard
from benchmarks.guard import files, recording, runs, times
from benchmarks.guard.configurations import CONFIGURATIONS, STAND_INS
from benchmarks.guard.recording import Renames, compare_entries
from distsgd.nn.layers import ACTIVATIONS
from distsgd.nn.losses import LOSSES
from distsgd.nn.models import MODELS
from distsgd.optim.registry import OPTIMIZERS
from distsgd.optim.schedules import SCHEDULES
from tests import emulated_kernels

RECORDS = [{"step": 1, "loss": 0.5, "run": {"seconds": 1.0}}, {"step": 2, "loss": 0.25, "best": True}]
MACHINE = {
    "probe": "0123456789abcdef", "kernels": "openblas Haswell", "numpy": "2.0", "python": "3.11", "mpi": "MPICH",
    "compiler": "g++", "cpu": "a CPU", "commit": "abc",
}  # fmt: skip


def entry(records: Sequence[dict[str, Any]] = RECORDS, **more: Any) -> dict[str, Any]:
    return {"metrics": recording.of_records(records), **more}


def renamed(old: str, new: str) -> list[dict[str, Any]]:
    return [{new if key == old else key: value for key, value in record.items()} for record in RECORDS]


# --- digests


def test_records_are_equal_whatever_the_order_of_fields_and_the_run() -> None:
    others = [{**dict(reversed(record.items())), "run": {"seconds": 7}} for record in RECORDS]
    assert recording.of_records(others) == recording.of_records(RECORDS)
    assert set(recording.of_records(RECORDS)) == {"step", "loss", "best"}


@pytest.mark.parametrize("loss", [np.nextafter(0.25, 1.0).item(), 0, "0.25", None])
def test_records_differ_by_the_last_bit_and_by_type(loss: Any) -> None:
    reported = compare_entries(entry(), entry([RECORDS[0], {**RECORDS[1], "loss": loss}]))
    assert reported == ["metrics: loss differs"]


def test_records_differ_by_the_record_that_holds_a_value() -> None:
    moved = [{**RECORDS[0], "best": True}, {key: RECORDS[1][key] for key in ("step", "loss")}]
    assert compare_entries(entry(), entry(moved)) == ["metrics: best differs"]


def test_arrays_differ_by_bits_type_and_shape() -> None:
    array = np.zeros((2, 3), np.float32)
    others = [array.astype(np.float64), array.reshape(3, 2), -array, array.T]
    digests = [recording.of_arrays({"w": one})["w"] for one in (array, *others[:3])]
    assert len(set(digests)) == 4
    assert recording.of_arrays({"w": np.asfortranarray(array)})["w"] == digests[0]
    assert recording.of_arrays({"w": others[3]})["w"] == digests[2]


def test_a_summary_keeps_what_is_short() -> None:
    reported = recording.of_summary({"loss": 0.1, "matrix": {"test": [[1] * 99]}, "sha": "a" * 64, "run": {"ranks": 2}})
    assert reported["loss"] == "0.1"
    assert json.loads(reported["sha"]) == "a" * 64
    assert set(reported) == {"loss", "matrix.test", "sha"}
    assert len(reported["matrix.test"]) == 12


# --- comparing


def test_a_field_with_another_name_has_equal_values() -> None:
    assert compare_entries(entry(), entry(renamed("loss", "cost"))) == [
        "metrics: names differ, values equal: loss=cost"
    ]
    assert compare_entries(entry(), entry(renamed("loss", "cost")), Renames.parse(["loss=cost"])) == []
    assert compare_entries(entry(), entry(renamed("loss", "cost")), Renames.parse(["loss=", "=cost"])) == []


def test_a_renaming_hides_no_other_value() -> None:
    others = renamed("loss", "cost")
    others[1]["cost"] = 0.125
    assert compare_entries(entry(), entry(others), Renames.parse(["loss=cost"])) == ["metrics: cost differs"]
    assert compare_entries(entry(), entry(others)) == ["metrics: loss is gone, cost is new"]


def test_two_fields_that_change_their_names_for_each_other() -> None:
    swapped = [{**record, "step": record["loss"], "loss": record["step"]} for record in RECORDS]
    assert compare_entries(entry(), entry(swapped)) == ["metrics: step differs, loss differs"]
    assert compare_entries(entry(), entry(swapped), Renames.parse(["step=loss", "loss=step"])) == []


@pytest.mark.parametrize("pair", ["loss", "=", "a=b=c"])
def test_what_is_no_renaming_is_refused(pair: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        guard.main(["--compare", "nowhere.json", "--rename", pair])
    assert stop.value.code == 2
    assert f"--rename: expected OLD=NEW, =NEW or OLD=, got '{pair}'" in capsys.readouterr().err


def test_the_first_launch_that_differs_is_named() -> None:
    old, new = entry(launches=["scale 1x256: a", "gemm 3x4x5"]), entry(launches=["scale 1x256: a", "gemm 3x4x6"])
    (reported,) = compare_entries(old, new)
    assert reported == "launches: number 2 of 2 was 'gemm 3x4x5', now it is 'gemm 3x4x6', of 2"
    (reported,) = compare_entries(old, entry(launches=old["launches"][:1]))
    assert "'gemm 3x4x5', now it is 'nothing', of 1" in reported
    new = entry(launches=["multiply 1x256: a", "gemm 3x4x5"])
    assert compare_entries(old, new, Renames.parse(["scale=multiply"])) == []


# --- files and the exit status


def write(path: Path, configurations: dict[str, Any], ratios: Sequence[float] = (2.0, 2.1, 2.2), **machine: Any) -> str:
    steps = {"mlp512": {"ratios": ratios, "microseconds": [1.0] * len(ratios)}}
    files.store(path, {"machine": {**MACHINE, **machine}, "configurations": configurations, "steps": steps})
    return str(path)


def compared(old: str, new: str, *more: str) -> int:
    return guard.main(["--compare", old, "--recorded", new, *more])


def test_equal_recordings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = {"a": entry(), "b": entry()}
    old, new = write(tmp_path / "old", table), write(tmp_path / "new", {**table, "c": entry()})
    assert compared(old, new) == 0
    out = capsys.readouterr().out
    assert "2 of 2 configurations are equal" in out
    assert "not in the recording: c" in out


def test_a_configuration_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old", {"a": entry(), "b": entry()})
    new = write(tmp_path / "new", {"a": entry(), "b": entry(renamed("loss", "cost"))})
    assert compared(old, new) == 1
    assert "b: metrics: names differ, values equal: loss=cost\n1 of 2 conf" in capsys.readouterr().out
    assert compared(old, new, "--only", "a*") == 0
    assert compared(old, new, "--rename", "loss=cost") == 1  # a has its old name still
    assert compared(old, write(tmp_path / "less", {"a": entry()})) == 1
    assert "b: was not run" in capsys.readouterr().out


@pytest.mark.parametrize(("ratios", "status"), [([2.17] * 3, 1), ([2.13] * 3, 0), ([1.5] * 3, 0)])
def test_a_step_that_has_become_slower(
    tmp_path: Path, ratios: list[float], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = write(tmp_path / "old", {"a": entry()}), write(tmp_path / "new", {"a": entry()}, ratios)
    assert compared(old, new) == status
    out = capsys.readouterr().out
    assert "2.100 ± 2.7 %" in out
    assert ("SLOWER" in out) == bool(status)
    assert compared(old, new, "--tolerance", "5") == 0


def test_other_kernels_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = write(tmp_path / "old", {"a": entry()}), write(tmp_path / "new", {"a": entry()}, probe="fedcba")
    with pytest.raises(SystemExit) as stop:
        compared(old, new)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("guard: nothing can be compared: ")
    assert MACHINE["probe"] in err
    assert "fedcba" in err
    write(tmp_path / "old", {"a": entry()}, probe="fedcba")  # beside the other one
    assert compared(old, new) == 0


def test_another_cpu_with_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old", {"a": entry()})
    assert compared(old, write(tmp_path / "new", {"a": entry()}, [9.0] * 3, cpu="another CPU")) == 0
    out = capsys.readouterr().out
    assert "not the same machine: cpu: a CPU, now another CPU" in out
    assert "times of steps are not compared" in out


def test_what_holds_no_recordings_is_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"a": 1}')
    for option in ("--compare", "--record"):
        with pytest.raises(SystemExit) as stop:
            guard.main([option, str(path)])
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith(f"guard: {path} holds no recordings")
    assert path.read_text() == '{"a": 1}'


def test_noise_is_that_of_the_median() -> None:
    assert times.noise([1.98, 2.0, 2.0, 2.02]) == pytest.approx(0.5)
    assert times.slower({"ratios": [1.0, 2.0, 9.0]}, {"ratios": [2.1]}) == pytest.approx(5.0)


# --- real trainings


def quiet(what: str) -> None:
    pass


def test_trainings_recorded_twice_are_equal_and_others_are_not() -> None:
    names = ["13 examples, minibatches of 2", "2 examples", "own layers"]
    variants = [runs.Variant(None), runs.Variant(None, threads=2)]
    found, wrong = runs.fits(names, quiet, variants)
    assert wrong == []
    again, _ = runs.fits(names[::-1], quiet, variants[:1])
    for name in names:
        assert compare_entries(found[name], again[name]) == []
        assert set(found[name]) == {"parameters", "state", "metrics", "summary", "predictions"}
    assert len({found[name]["summary"]["parameters_sha256"] for name in names}) == len(names)


@pytest.mark.stand_in
@pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT)
def test_launches_of_a_step() -> None:
    lines = runs.stand_ins(["gpu momentum"])["gpu momentum"]["launches of GPU 0"]
    launched = [line.partition(" ")[0] for line in lines]
    assert launched.count("gemm") == 2 * 8  # two microbatches; three layers forward, three dW, two dx
    assert launched.count("momentum") == 1
    assert launched.index("softmax_cross_entropy") < launched.index("row_sums") < launched.index("momentum")


def values(option: str) -> set[Any]:
    return {options[option] for options in CONFIGURATIONS.values() if option in options}


def test_every_member_of_the_registries_is_guarded() -> None:
    """And each optimizer and loss on the stand-ins, too."""
    assert set(OPTIMIZERS) - {"momentum"} <= values("optimizer")  # momentum is the default
    assert set(SCHEDULES) - {"constant"} <= values("schedule")
    assert set(MODELS) - {"mlp"} <= values("model")
    assert set(ACTIVATIONS) - {"relu"} <= values("activation")
    assert set(LOSSES) - {"softmax-cross-entropy"} <= values("loss")
    assert set(OPTIMIZERS) - {"momentum", "sgd"} <= {options.get("optimizer") for options in STAND_INS.values()}


def test_there_are_many_configurations() -> None:
    assert len(CONFIGURATIONS) >= 60
    assert not set(CONFIGURATIONS) & set(STAND_INS)
