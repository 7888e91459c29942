"""Two runs, one folder, real processes: the second is refused; nothing of the first is moved or written over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.parallel.launch import LIMIT, environment, find_mpirun, module, once, summary, train
from tests.waiting import wait_until

OPTIONS = ("--epochs", "30000", "--patience", "0", "--checkpoint-every", "50", "--quiet", "--hidden", "16")


def start(ranks: int | None, out: Path, *options: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "distsgd.train", *once(("--out", out.name, *OPTIONS, *options))]
    if ranks is not None:
        mpirun, reason = find_mpirun()
        if mpirun is None:
            pytest.skip(reason)
        line = [mpirun, "-n", str(ranks), *line]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, cwd=out.parent, env=environment(), text=True, start_new_session=True, **pipes)


@contextmanager
def alive(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Ends the process, whatever happens."""
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    def is_there() -> bool:
        assert path.exists() or process.poll() is None, process.communicate()
        return path.exists()

    wait_until(is_there, str(path))


def stop(process: subprocess.Popen[str]) -> str:
    """Standard error of a run that is asked to stop, and does so with a checkpoint."""
    process.terminate()
    err = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 75, err
    return err


@pytest.mark.parametrize("ranks", first_of([2, None]))
def test_the_second_is_refused(tmp_path: Path, ranks: int | None) -> None:
    out = tmp_path / "run"
    with alive(start(None, out)) as first:
        wait_for(out / "checkpoints" / "step-100.safetensors", first)
        for number, more in ((ranks, ("--seed", 7, "--resume", "never")), (None, ())):
            done = train(number, out, *OPTIONS, "--max-steps", 1500, *more, status=2)
            (line,) = done.err.splitlines()
            assert line.startswith(f"distsgd: error: another process is training in {out} (process {first.pid} on ")
        assert os.listdir(tmp_path) == ["run"]
        train(None, out, *OPTIONS, "--dry-run")
        config = (out / "config.toml").read_text()
        assert stop(first) == ""
    assert "\nseed = 0\n" in f"\n{config}"
    steps = summary(out)["steps"]
    assert sorted(os.listdir(out)) == [
        "checkpoints",
        "config.toml",
        "metrics.jsonl",
        "summary.json",
        "validation_rows.npy",
    ]
    again = train(None, out, *OPTIONS, "--max-steps", steps + 1)
    assert "completed: " in again.out


@pytest.mark.parametrize(
    ("number", "ranks"),
    first_of([(1, 2), (0, None), (1, None), (0, 2), *((number, None) for number in range(2, 8))]),
)
def test_two_starts_in_the_same_moment(tmp_path: Path, number: int, ranks: int | None) -> None:
    """Exactly one trains, in a folder that is there and in one that isn't."""
    out = tmp_path / "deep" / "run"
    out.parent.mkdir()
    if number % 2:
        out.mkdir()
    with alive(start(ranks, out, "--seed", 1)) as one, alive(start(ranks, out, "--seed", 2)) as two:
        wait_until(lambda: one.poll() is not None or two.poll() is not None, "the end of one of two")
        lost, won = (one, two) if one.poll() is not None else (two, one)
        err = lost.communicate(timeout=LIMIT)[1]
        assert err.splitlines()[0].startswith("distsgd: error: another process is training in run"), err
        assert lost.returncode == 2
        wait_for(out / "checkpoints" / "last.safetensors", won)
        if ranks is None:
            assert stop(won) == ""
    assert os.listdir(out.parent) == ["run"]


def test_a_killed_run_keeps_no_other_out(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with alive(start(None, out)) as first:
        wait_for(out / "checkpoints" / "last.safetensors", first)
        first.kill()
        first.wait()
    assert (out / ".lock").exists()
    train(None, out, *OPTIONS, "--max-steps", 100, "--resume", "never")
    assert sorted(os.listdir(tmp_path)) == ["run", "run.1"]
    for folder in (out, tmp_path / "run.1"):
        assert not (folder / ".lock").exists()
    assert (tmp_path / "run.1" / "checkpoints" / "last.safetensors").exists()


@pytest.mark.long
def test_a_run_that_is_moved_leaves_its_place_free(tmp_path: Path) -> None:
    """The next run there and the one that was moved don't know each other."""
    out, moved = tmp_path / "run", tmp_path / "moved"
    with alive(start(3, out)) as first:
        wait_for(out / "checkpoints" / "last.safetensors", first)
        out.rename(moved)
        train(None, out, *OPTIONS, "--max-steps", 500, "--seed", 7)
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert train(None, moved, *OPTIONS, status=2).err.startswith("distsgd: error: another process is training in ")
        first.send_signal(signal.SIGUSR1)
        assert first.communicate(timeout=LIMIT)[1].splitlines()[0] == (
            f"warning: the run folder run was moved to {moved}; this run continues to write into it"
        )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert summary(moved)["status"] == "stopped"
    train(2, moved, *OPTIONS, "--max-steps", summary(moved)["steps"] + 10)


@pytest.mark.long
def test_readers_take_no_lock(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with alive(start(None, out)) as first:
        wait_for(out / "checkpoints" / "best.safetensors", first)
        assert module(None, "evaluate", tmp_path, "run", "--dataset", "digits").status == 0
        stop(first)
