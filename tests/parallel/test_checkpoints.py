"""Checkpoints written while training goes on: whole, of one step, in spite of full disks, signals and kills."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from distsgd.checkpoint import CheckpointFolder, read_checkpoint
from tests.parallel.launch import Done, module, records, result, summary, train

OPTIONS = (
    *("--epochs", 3, "--batch-size", 150, "--hidden", 200, 100, "--optimizer", "adam", "--batch-norm"),
    *("--log-every", 4),
)
STEPS = 33

# Imported on every rank; of the callbacks rank 0's are used.
CODE = '''
import hashlib
import json
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np

from distsgd import Callback, trainer

SETTING = json.loads(os.environ.get("TEST_SETTING", "{}"))
take, fsync, calls = trainer.take, os.fsync, []


def late(*arguments):
    time.sleep(SETTING["late"])
    return take(*arguments)


def slow(descriptor):
    time.sleep(SETTING.get("slow", 0))
    calls.append(descriptor)
    if len(calls) == SETTING.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    return fsync(descriptor)


if "late" in SETTING:
    trainer.take = late
if "slow" in SETTING or "die" in SETTING:
    os.fsync = slow


class Watch(Callback):
    """Writes down what the parameters and the optimizer's state are behind each step."""

    def on_start(self, trainer):
        self.step = trainer.step
        self.seen = {}

    def on_step(self, step, loss, examples):
        exchange = self.step.exchange
        arrays = [exchange.params, *exchange.slots(0, exchange.params.size), self.step.running.flat]
        self.seen[step] = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    def on_end(self, summary):
        names = {"parameters": self.step.layout.names, "statistics": tuple(self.step.running)}
        Path("seen.json").write_text(json.dumps({"seen": self.seen, "names": names}))


class Trouble(Callback):
    """No file may grow beyond what metrics need, for a while; or the folder is taken away; or a signal comes."""

    def on_start(self, trainer):
        self.others = [callback for callback in trainer.callbacks if callback is not self]

    def on_step(self, step, loss, examples):
        if step in (SETTING.get("full"), SETTING.get("away")):
            assert not any([callback.busy(20) for callback in self.others]), "the checkpoint before hangs"
        if step == SETTING.get("full"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        if step == SETTING.get("room"):
            time.sleep(0.1)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if step == SETTING.get("away"):
            os.rename("run", "gone")
        if step == SETTING.get("signal"):
            os.kill(os.getpid(), signal.SIGTERM)
'''


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    out.parent.joinpath("code.py").write_text(CODE)
    train(None, out, *OPTIONS, "--callback", "code.py:Watch")
    return out


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "code.py").write_text(CODE)
    return tmp_path / "run"


def disturbed(out: Path, ranks: int, setting: dict[str, Any], *options: object, status: int = 0) -> Done:
    more = ("--callback", "code.py:Trouble", *options)
    return train(ranks, out, *OPTIONS, *more, status=status, extra={"TEST_SETTING": json.dumps(setting)})


@pytest.mark.parametrize(("ranks", "kind"), [(4, "shared"), (3, "mpi")])
def test_each_is_of_its_own_step(out: Path, undisturbed: Path, ranks: int, kind: str) -> None:
    """Rank 0 copies long after the others have gone on, and writes longer still."""
    options = ("--checkpoint-every", 1, "--keep", STEPS, "--communication", kind)
    disturbed(out, ranks, {"late": 0.005, "slow": 0.001}, *options)
    told = json.loads((undisturbed.parent / "seen.json").read_text())
    for step in range(1, STEPS + 1):
        found = read_checkpoint(out / "checkpoints" / f"step-{step}.safetensors")
        digest = hashlib.sha256()
        for group in ("parameters", "optimizer/first_moment", "optimizer/second_moment", "statistics"):
            arrays = found.group(group)
            for name in told["names"]["statistics" if group == "statistics" else "parameters"]:
                digest.update(arrays[name].tobytes())
        assert digest.hexdigest() == told["seen"][str(step)], f"step {step}"
    assert result(out) == result(undisturbed)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_disk_that_is_full_for_a_while(out: Path, undisturbed: Path, ranks: int) -> None:
    done = disturbed(out, ranks, {"full": 12, "room": 27}, "--checkpoint-every", 5)
    first, last = done.err.splitlines()
    assert first.startswith("warning: could not write the checkpoint ")
    assert first.endswith(
        "step-15.safetensors: File too large; the last good checkpoint stays, and this is tried again"
    )
    assert last == "warning: checkpoints are written again"
    assert result(out) == result(undisturbed)


def test_a_disk_that_stays_full(out: Path, undisturbed: Path) -> None:
    done = disturbed(out, 3, {"full": 12}, "--checkpoint-every", 5, status=1)
    assert done.err.splitlines()[-1].startswith("distsgd: error: could not write the checkpoint ")
    assert "the last is of step 10; put this right, and the same command goes on from there" in done.err
    assert done.seconds < 15
    assert summary(out)["status"] == "failed"
    assert not list(out.rglob("*.tmp"))
    again = train(2, out, *OPTIONS)
    assert "from step 10" in again.out
    assert result(out) == result(undisturbed)


def test_a_folder_that_is_taken_away(out: Path, undisturbed: Path) -> None:
    done = disturbed(out, 2, {"away": 12}, "--checkpoint-every", 5)
    assert summary(out) == summary(undisturbed)
    assert (out / "config.toml").exists()
    assert [record["step"] for record in records(out)][-1] == STEPS
    assert "Traceback" not in done.err
    assert CheckpointFolder(out / "checkpoints").newest()[0].document["step"] == STEPS  # type: ignore[union-attr]


def test_a_signal_while_it_is_written(out: Path, undisturbed: Path) -> None:
    disturbed(out, 3, {"slow": 0.1, "signal": 11}, "--checkpoint-every", 10, status=75)
    found, problems = CheckpointFolder(out / "checkpoints").newest()
    assert found is not None
    assert problems == []
    assert found.document["step"] == summary(out)["steps"] == 12
    train(2, out, *OPTIONS)
    assert result(out) == result(undisturbed)


@pytest.mark.parametrize("call", [5, 9, 12, 15])
def test_killed_while_it_is_written(out: Path, undisturbed: Path, call: int) -> None:
    """Rank 0 dies at one of the times when it syncs something."""
    setting = {"die": call}
    more = ("--callback", "code.py:Trouble", "--checkpoint-every", 5)
    extra = {"TEST_SETTING": json.dumps(setting)}
    done = module(2, "train", out.parent, "--out", out, *OPTIONS, *more, extra=extra)
    assert done.status != 0
    assert not (out / "summary.json").exists()
    train(3, out, *OPTIONS)
    assert result(out) == result(undisturbed)
    assert not list(out.rglob("*.tmp"))
