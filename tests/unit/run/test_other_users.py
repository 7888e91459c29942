"""Other users who can write into a run's folder, or where it is to be: they get nothing written outside it, read
nothing, and can't make a run wait; whatever they keep from happening is reported.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.checkpoint import Checkpoint
from distsgd.core.errors import DistsgdError
from distsgd.core.folders import Folder
from distsgd.parallel.serial import SerialCommunicator
from distsgd.run.config_file import read_toml
from distsgd.run.files.folder import RunFolder
from distsgd.run.fit import fit
from distsgd.run.lifecycle import opened

VICTIM, ATTACKER = 60001, 60002
X = np.arange(60.0).reshape(20, 3) % 7
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 10, "validation_fraction": 0.0}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two other users")


def as_user(user: int, function: Callable[[], Any]) -> Any:
    """What the function returns, or raises, in a process of that user."""
    there, here = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            try:
                result = (function(), None)
            except BaseException as error:
                result = (None, error)
            with os.fdopen(here, "wb") as pipe:
                pickle.dump(result, pipe)
        finally:
            os._exit(0)
    os.close(here)
    with os.fdopen(there, "rb") as pipe:
        value, error = pickle.load(pipe)
    os.waitpid(process, 0)
    if error is not None:
        raise error
    return value


@pytest.fixture(params=[0o1777, 0o777], ids=["sticky", "not sticky"])
def shared(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that everybody may write into, with the victim's own file beside it."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    (path / "shared").mkdir()
    (path / "shared").chmod(request.param)
    (path / "home").mkdir()
    os.chown(path / "home", VICTIM, VICTIM)
    as_user(VICTIM, lambda: (path / "home" / "precious").write_text("years of work"))
    yield path / "shared"
    shutil.rmtree(path)


def a_run(path: Path) -> None:
    """All that a run writes."""
    run = RunFolder(path)
    try:
        run.create("seed = 1\n")
        run.cut_metrics(0)
        run.add_metrics({"step": 1})
        run.sync_metrics()
        run.checkpoints.save(Checkpoint({}, {"step": 1}), 1)
        run.checkpoints.save_best(Checkpoint({}, {"step": 1}))
        run.write_summary({"status": "completed"})
    finally:
        run.unlock()


def precious(shared: Path) -> str:
    return (shared.parent / "home" / "precious").read_text()


NAMES = ("config.toml", "metrics.jsonl", "summary.json")


@pytest.mark.parametrize("kind", ["link", "pipe", "file"])
@pytest.mark.parametrize("pattern", ["{}", ".{}.tmp"])
def test_what_waits_at_names_of_files(shared: Path, kind: str, pattern: str) -> None:
    def prepare() -> None:
        (shared / "checkpoints").mkdir(mode=0o777)
        (shared / "checkpoints").chmod(0o777)
        stems = (*NAMES, *(f"checkpoints/{name}.safetensors" for name in ("step-1", "last", "best")))
        for name in stems:
            path = shared / name
            path = path.with_name(pattern.format(path.name))
            if kind == "link":
                path.symlink_to(shared.parent / "home" / "precious")
            elif kind == "pipe":
                os.mkfifo(path, 0o666)
            else:
                path.write_text("theirs")
                path.chmod(0o666)

    as_user(ATTACKER, prepare)
    with suppress(DistsgdError):
        as_user(VICTIM, lambda: a_run(shared))
    assert precious(shared) == "years of work"


def test_a_checkpoint_folder_that_is_their_link(shared: Path) -> None:
    (shared.parent / "home" / "step-0.safetensors").write_text("mine")
    as_user(ATTACKER, lambda: (shared / "checkpoints").symlink_to(shared.parent / "home"))
    with pytest.raises(DistsgdError, match=r"could not write the run folder .*checkpoints: Not a directory"):
        as_user(VICTIM, lambda: a_run(shared))
    assert sorted(os.listdir(shared.parent / "home")) == ["precious", "step-0.safetensors"]


@pytest.mark.parametrize("turn", range(1, 5))
def test_a_link_that_they_exchange_while_it_is_followed(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    """Behind any of the looks at it; what is written lands where the user's own link leads, or nowhere."""
    (tmp_path / "disk").mkdir()
    (shared / "checkpoints").symlink_to(tmp_path / "disk")
    (shared / "theirs").symlink_to(shared.parent / "home")
    os.chown(shared / "theirs", ATTACKER, ATTACKER, follow_symlinks=False)
    looks = 0

    def looking(function: Callable[..., Any]) -> Callable[..., Any]:
        def look(path: Any, *arguments: Any, **keywords: Any) -> Any:
            nonlocal looks
            try:
                return function(path, *arguments, **keywords)
            finally:
                looks += path == "checkpoints"
                if looks == turn and os.path.lexists(shared / "theirs"):
                    os.replace(shared / "theirs", shared / "checkpoints")

        return look

    for name in ("open", "stat", "readlink"):
        monkeypatch.setattr(os, name, looking(getattr(os, name)))
    with suppress(OSError):
        Folder(shared).child("checkpoints").write("step-1.safetensors", b"parameters")
    assert looks
    assert os.listdir(shared.parent / "home") == ["precious"]


def test_nothing_of_a_private_file_is_copied(shared: Path) -> None:
    """Through links where records are read to be cut, and a checkpoint is copied for want of hard links."""
    secret = '{"step": 0, "secret": 1}'

    def prepare() -> None:
        (shared / "metrics.jsonl").symlink_to(shared.parent / "home" / "private")

    def hide() -> None:
        (shared.parent / "home" / "private").write_text(secret)
        (shared.parent / "home" / "private").chmod(0o600)

    def copy() -> None:
        (shared / "private").symlink_to(shared.parent / "home" / "private")
        with suppress(OSError), pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(os, "link", refuse)
            Folder(shared).link("private", "copy")

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise PermissionError

    as_user(VICTIM, hide)
    as_user(ATTACKER, prepare)
    with pytest.raises(DistsgdError, match="could not write the run folder"):
        as_user(VICTIM, lambda: a_run(shared))
    as_user(VICTIM, copy)
    for path in shared.rglob("*"):
        assert path.is_symlink() or not path.is_file() or b"secret" not in path.read_bytes()


def lock_it(path: Path) -> None:
    """Takes the lock with a file of one's own, and keeps it."""
    import fcntl

    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    os.fchmod(descriptor, 0o666)
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def test_a_lock_file_of_theirs(shared: Path) -> None:
    as_user(ATTACKER, lambda: lock_it(shared))
    with pytest.raises(DistsgdError, match=rf"can't lock the run folder .* it belongs to user {ATTACKER}; remove it"):
        as_user(VICTIM, lambda: a_run(shared))
    assert os.listdir(shared) == [".lock"]


def test_a_lock_file_of_theirs_that_is_closed(shared: Path) -> None:
    as_user(ATTACKER, lambda: os.close(os.open(shared / ".lock", os.O_CREAT, 0o600)))
    with pytest.raises(DistsgdError, match=r"can't lock the run folder .* it can't be opened \(Permission denied\)"):
        as_user(VICTIM, lambda: a_run(shared))


@pytest.mark.parametrize("target", ["precious", "missing"])
def test_a_lock_file_that_is_their_link(shared: Path, target: str) -> None:
    as_user(ATTACKER, lambda: (shared / ".lock").symlink_to(shared.parent / "home" / target))
    with pytest.raises(DistsgdError, match="can't lock the run folder"):
        as_user(VICTIM, lambda: a_run(shared))
    assert precious(shared) == "years of work"
    assert os.listdir(shared.parent / "home") == ["precious"]


def test_reading_is_not_enough_to_keep_a_run_out(shared: Path) -> None:
    """Neither the folder nor the lock file of a run can be locked by somebody who may look at them."""
    import fcntl

    def look() -> list[str]:
        printed = []
        descriptor = os.open(shared, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(go[1], b"1")
        os.read(done[0], 1)
        try:
            os.open(shared / ".lock", os.O_RDONLY)
        except OSError as error:
            printed.append(type(error).__name__)
        return printed

    def train() -> None:
        os.read(go[0], 1)
        run = RunFolder(shared)
        run.create("seed = 1\n")
        os.write(done[1], b"1")
        run.unlock()

    go, done = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        try:
            as_user(VICTIM, train)
        finally:
            os._exit(0)
    printed = as_user(ATTACKER, look)
    assert os.waitpid(process, 0)[1] == 0
    assert printed in (["PermissionError"], ["FileNotFoundError"])
    for descriptor in (*go, *done):
        os.close(descriptor)


def test_a_group_that_shares_runs(shared: Path) -> None:
    """One user continues what another has left in order."""
    (shared / "run").mkdir()
    (shared / "run").chmod(0o777)
    as_user(ATTACKER, lambda: a_run(shared / "run"))
    (shared / "run" / "checkpoints").chmod(0o777)
    as_user(VICTIM, lambda: a_run(shared / "run"))
    assert not (shared / "run" / ".lock").exists()


def test_a_finished_run_that_can_only_be_read(shared: Path) -> None:
    """It needs no lock: the same command says what it came to."""
    out = str(shared / "run")
    fit("softmax", (X, X[:, 0] > 3), out=out, **QUICK)
    config = read_toml(shared / "run" / "config.toml")

    def look(steps: int) -> str | None:
        with opened(SerialCommunicator(), replace(config, out=out, epochs=steps), RunFolder(Path(out))) as start:
            return start.finished

    assert "completed: 1 epoch" in as_user(VICTIM, lambda: look(1))
    with pytest.raises(DistsgdError, match=r"could not write the run folder .*run \(.*: Permission denied\)"):
        as_user(VICTIM, lambda: look(2))
