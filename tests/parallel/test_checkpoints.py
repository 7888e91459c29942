"""Checkpoints written while training continues: whole, of one step, in spite of full disks, signals and kills."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from distsgd.core.checkpoint_folder import CheckpointFolder, read_checkpoint
from distsgd.core.folders import Folder
from tests.cases import first_of
from tests.parallel.launch import Done, module, records, result, summary, train

OPTIONS = (
    *("--epochs", 3, "--batch-size", 150, "--hidden", 200, 100, "--optimizer", "adam", "--batch-norm"),
    *("--log-every", 4),
)
STEPS = 33
FILES = ["metrics.jsonl", "summary.json"]

# Imported on every rank; of the callbacks rank 0's are used.
CODE = '''
import hashlib
import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np

from distsgd import Callback
from distsgd.training import checkpoint_store
from distsgd.training.trainer import Trainer

SETTING = json.loads(os.environ.get("TEST_SETTING", "{}"))
take, fsync, calls = checkpoint_store.take, os.fsync, []
trainers, fit = [], Trainer.fit


def keeping(self):
    trainers.append(self)
    return fit(self)


def late(*arguments):
    time.sleep(SETTING["late"])
    return take(*arguments)


def slow(descriptor):
    time.sleep(SETTING.get("slow", 0))
    calls.append(descriptor)
    if len(calls) == SETTING.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    return fsync(descriptor)


Trainer.fit = keeping
if "late" in SETTING:
    checkpoint_store.take = late
if "slow" in SETTING or "die" in SETTING:
    os.fsync = slow


class Watch(Callback):
    """Writes down what the parameters and the optimizer's state are behind each step."""

    def on_start(self, run):
        self.step = trainers[0].step
        self.seen = {}

    def on_step(self, step, loss, examples):
        reduction = self.step.reduction
        arrays = [reduction.params, *reduction.slots(0, reduction.params.size), self.step.running.flat]
        self.seen[step] = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    def on_end(self, summary):
        names = {"parameters": self.step.layout.names, "statistics": tuple(self.step.running)}
        Path("seen.json").write_text(json.dumps({"seen": self.seen, "names": names}))


class Trouble(Callback):
    """No file may grow beyond what metrics need, for a while; or the folder is taken away; or a signal comes."""

    def on_step(self, step, loss, examples):
        if step in (SETTING.get("full"), SETTING.get("moved"), SETTING.get("removed")):
            assert not trainers[0].store.busy(100), "the checkpoint before hangs"
        if step == SETTING.get("full"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        if step == SETTING.get("space"):
            time.sleep(0.1)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if step == SETTING.get("moved"):
            os.rename("run", "gone")
        if step == SETTING.get("removed"):
            shutil.rmtree("run")
        if step in (SETTING.get("moved"), SETTING.get("removed")) and "replaced" in SETTING:
            shutil.copytree("other", "run")
        if step == SETTING.get("signal"):
            os.kill(os.getpid(), signal.SIGTERM)
'''


def newest(out: Path) -> int:
    found, problems = CheckpointFolder(Folder(out / "checkpoints")).newest()
    assert found is not None
    assert problems == []
    return int(found.document["step"])


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


@pytest.mark.parametrize(("ranks", "kind"), first_of([(2, "shared"), (4, "shared"), (3, "mpi")]))
def test_each_is_of_its_own_step(out: Path, undisturbed: Path, ranks: int, kind: str) -> None:
    """Rank 0 copies long after the others have gone on, and writes longer still."""
    options = ("--checkpoint-every", 1, "--keep", STEPS, "--communication", kind)
    disturbed(out, ranks, {"late": 0.005, "slow": 0.001}, *options)
    reported = json.loads((undisturbed.parent / "seen.json").read_text())
    for step in range(1, STEPS + 1):
        found = read_checkpoint(out / "checkpoints" / f"step-{step}.safetensors")
        digest = hashlib.sha256()
        for group in ("parameters", "optimizer/first_moment", "optimizer/second_moment", "statistics"):
            arrays = found.group(group)
            for name in reported["names"]["statistics" if group == "statistics" else "parameters"]:
                digest.update(arrays[name].tobytes())
        assert digest.hexdigest() == reported["seen"][str(step)], f"step {step}"
    assert result(out) == result(undisturbed)


@pytest.mark.parametrize("ranks", first_of([2, 1]))
def test_a_disk_that_is_full_for_a_while(out: Path, undisturbed: Path, ranks: int) -> None:
    done = disturbed(out, ranks, {"full": 12, "space": 27}, "--checkpoint-every", 5)
    first, last = done.err.splitlines()
    assert first.startswith("warning: could not write the checkpoint ")
    assert first.endswith(
        "step-15.safetensors: File too large; the last good checkpoint stays, and this is tried again"
    )
    assert last == "warning: checkpoints are written again"
    assert result(out) == result(undisturbed)


def test_a_disk_that_stays_full(out: Path, undisturbed: Path) -> None:
    done = disturbed(out, 2, {"full": 12}, "--checkpoint-every", 5, status=1)
    assert done.err.splitlines()[-1].startswith("distsgd: error: could not write the checkpoint ")
    assert "the last is of step 10; put this right, and the same command continues from there" in done.err
    assert summary(out)["status"] == "failed"
    assert not list(out.rglob("*.tmp"))
    again = train(None, out, *OPTIONS)
    assert "from step 10" in again.out
    assert result(out) == result(undisturbed)


@pytest.fixture
def other(out: Path) -> Path:
    """Another run, which is put in the first one's place."""
    return a_run(out.with_name("other"))


def a_run(out: Path) -> Path:
    (out / "checkpoints").mkdir(parents=True)
    for name in ("config.toml", "metrics.jsonl", "summary.json", "checkpoints/last.safetensors"):
        (out / name).write_text(f"{name} of another run")
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ranks", first_of([2, 1, 3]))
@pytest.mark.parametrize("setting", first_of([{"moved": 12, "replaced": True}, {"moved": 12}, {"moved": 31}]))
def test_a_folder_that_is_moved(out: Path, other: Path, undisturbed: Path, ranks: int, setting: dict[str, Any]) -> None:
    """All continues in it; what takes its place isn't touched."""
    done = disturbed(out, ranks, setting, "--checkpoint-every", 5)
    moved = out.with_name("gone")
    (line,) = done.err.splitlines()
    assert line == f"warning: the run folder {out} was moved to {moved}; this run continues to write into it"
    assert str(moved) in "\n".join(done.out.splitlines()[-3:])
    assert result(moved) == result(undisturbed)
    assert sorted(path.name for path in moved.iterdir()) == [
        "checkpoints",
        "config.toml",
        *FILES,
        "validation_rows.npy",
    ]
    assert newest(moved) == STEPS
    assert (files(out) == files(other)) if "replaced" in setting else not out.exists()


@pytest.mark.long
def test_a_folder_that_is_removed(out: Path, undisturbed: Path) -> None:
    done = disturbed(out, 2, {"removed": 12}, "--checkpoint-every", 5)
    line = done.err.splitlines()[-1]
    assert line == f"warning: the run folder {out} was removed; it is made anew, without the earlier records"
    assert summary(out) == summary(undisturbed)
    assert (out / "config.toml").exists()
    assert [record["step"] for record in records(out)][-1] == STEPS
    assert newest(out) == STEPS


@pytest.mark.long
def test_a_folder_that_is_removed_and_replaced(out: Path, other: Path) -> None:
    done = disturbed(out, 2, {"removed": 12, "replaced": True}, "--checkpoint-every", 5, status=1)
    printed = f"the run folder {out} was removed; what is there now is another's, and left alone"
    assert done.err.splitlines()[-1].startswith(f"distsgd: error: {printed}")
    assert "Traceback" not in done.err
    assert files(out) == files(other)


@pytest.mark.long
def test_a_signal_while_it_is_written(out: Path, undisturbed: Path) -> None:
    disturbed(out, 3, {"slow": 0.1, "signal": 11}, "--checkpoint-every", 10, status=75)
    assert newest(out) == summary(out)["steps"] == 12
    train(2, out, *OPTIONS)
    assert result(out) == result(undisturbed)


@pytest.mark.parametrize("call", first_of([9, 5, 12, 15]))
def test_killed_while_it_is_written(out: Path, undisturbed: Path, call: int) -> None:
    """Rank 0 dies at one of the times when it syncs something."""
    setting = {"die": call}
    more = ("--callback", "code.py:Trouble", "--checkpoint-every", 5)
    extra = {"TEST_SETTING": json.dumps(setting)}
    done = module(2, "train", out.parent, "--out", out, *OPTIONS, *more, extra=extra)
    assert done.status != 0
    assert not (out / "summary.json").exists()
    train(None, out, *OPTIONS)
    assert result(out) == result(undisturbed)
    assert not list(out.rglob("*.tmp"))
