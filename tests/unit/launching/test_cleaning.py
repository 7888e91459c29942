"""distsgd.launch leaves no processes and files, and touches none of other users and runs."""

from __future__ import annotations

import os
import shutil
import stat as modes
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distsgd.core.errors import LauncherError
from distsgd.core.output import LAUNCH_VARIABLE
from distsgd.core.processes import alive, stat
from distsgd.launching import cleaning, private
from distsgd.launching.cleaning import CleanupProcess, Leftovers
from distsgd.launching.private import PrivateFolder
from tests.waiting import LIMIT, wait_until

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")


@linux
def test_processes_are_found_by_their_tag(tmp_path: Path) -> None:
    leftovers = Leftovers("tag-of-this-test")
    tagged = {**os.environ, LAUNCH_VARIABLE: leftovers.name}
    # A child, and a grandchild that has left its session and its parent.
    text = "import os, time; os.fork() or (os.setsid(), os.fork() and os._exit(0)); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", text], env=tagged, start_new_session=True)
    other = subprocess.Popen(["sleep", "600"])
    try:
        while len(cleaning.with_variable(LAUNCH_VARIABLE, leftovers.name)) < 2:
            time.sleep(0.02)
        found = cleaning.with_variable(LAUNCH_VARIABLE, leftovers.name)
        assert leftovers.end_processes(keep=(other.pid,))
        assert [number for number in found if (left := stat(number)) is not None and not left.ended] == []
        assert other.poll() is None
    finally:
        for started in (process, other):
            started.kill()
            started.wait()


def test_unused_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(cleaning, "HYDRA_FOLDER", tmp_path)
    old, used, left = (tmp_path / f"mpich_shm_{name}" for name in ("old", "used", "left"))
    mine = tmp_path / "mpich_thing"
    old.touch()
    time.sleep(0.3)
    leftovers = Leftovers("name")
    for path in (used, left, mine):
        path.touch()
    monkeypatch.setattr(cleaning, "mapped_files", lambda folder: {str(used)})
    leftovers.remove_files()
    assert [path.exists() for path in (old, used, left, mine)] == [True, True, False, True]


@linux
def test_what_a_job_that_runs_has_open_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "SHARED_MEMORY", tmp_path / "none")
    monkeypatch.setattr(cleaning, "HYDRA_FOLDER", tmp_path)
    leftovers = Leftovers("name")
    used, left = (tmp_path / f"hydra_hwloc_xmlfile_{name}" for name in ("used", "left"))
    left.touch()
    text = f"file = open({str(used)!r}, 'w'); print(flush=True); input()"
    line = [sys.executable, "-c", text]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        leftovers.remove_files()
        assert (used.exists(), left.exists()) == (True, False)
    leftovers.remove_files()
    assert not used.exists()


@linux
@pytest.mark.parametrize("orderly", [True, False])
def test_a_cleanup_process_cleans_up_after_a_killed_launcher(tmp_path: Path, orderly: bool) -> None:
    text = (
        "import os, signal, subprocess, sys, time\n"
        "from distsgd.launching.cleaning import CleanupProcess, Leftovers\n"
        "from distsgd.core.output import LAUNCH_VARIABLE\n"
        "with CleanupProcess(Leftovers('tag-of-a-cleanup-test')) as cleanup:\n"
        "    tagged = {**os.environ, LAUNCH_VARIABLE: cleanup.leftovers.name}\n"
        "    child = subprocess.Popen(['sleep', '600'], env=tagged, start_new_session=True)\n"
        "    folder = cleanup.new_folder(); (folder / 'file').touch()\n"
        "    print(child.pid, cleanup.process, folder, flush=True)\n"
        f"    {'child.kill(); child.wait()' if orderly else 'os.kill(os.getpid(), signal.SIGKILL)'}\n"
    )
    settings = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", text], env=settings, capture_output=True, text=True, timeout=LIMIT)
    child, cleanup, folder = done.stdout.split()
    wait_until(lambda: not (alive_or_zombie(int(child)) or alive_or_zombie(int(cleanup))), "the end of both")
    assert not Path(folder).exists()
    assert list(tmp_path.iterdir()) == []


def alive_or_zombie(process: int) -> bool:
    found = stat(process)
    return found is not None and not found.ended


@linux
def test_a_process_is_known_by_its_start() -> None:
    me = stat(os.getpid())
    assert me is not None
    assert alive(os.getpid(), me.started)
    assert not alive(os.getpid(), me.started + 1)
    assert not alive(2**22 + 1, 0)


# a start's folder


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR that everybody may write, as /tmp is."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    folder.chmod(0o700)


def test_each_start_has_a_folder_of_its_own(shared: Path) -> None:
    with CleanupProcess(Leftovers("tag-of-a-folders-test")) as cleanup:
        first = cleanup.new_folder()
        assert modes.S_IMODE(first.stat().st_mode) == 0o700
        (first / "inside" / "deeper").mkdir(parents=True)
        (first / "file").touch()
        (first / "link").symlink_to(shared)
        cleanup.clean_up()
        assert list(shared.iterdir()) == []
        second = cleanup.new_folder()
        assert second != first
    assert list(shared.iterdir()) == []
    assert shared.exists()


def test_the_cleanup_process_receives_a_path_before_the_folder_exists(shared: Path) -> None:
    heard: list[tuple[Path, bool]] = []
    folder = PrivateFolder.make(lambda path: heard.append((path, path.exists())))
    assert heard == [(folder.path, False)]
    folder.remove()


@pytest.mark.parametrize("place", ["shared", "shared/inside"])
@pytest.mark.parametrize("mode", [0o777, 0o772])
def test_a_folder_that_others_can_rename_is_refused(
    shared: Path, monkeypatch: pytest.MonkeyPatch, place: str, mode: int
) -> None:
    folder = shared.parent / place
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    shared.chmod(mode)
    with pytest.raises(LauncherError) as raised:
        PrivateFolder.make(lambda path: None)
    assert f"others may in {shared} (mode {mode:o}, without the sticky bit)" in str(raised.value)
    assert "TMPDIR=" in str(raised.value)
    assert list(folder.glob("distsgd-*")) == []


def test_a_group_of_others_counts_as_others(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.chmod(0o770)
    monkeypatch.setattr(private, "is_own_group", lambda number: True)
    assert private.why_unsafe(shared) is None
    monkeypatch.setattr(private, "is_own_group", lambda number: False)
    assert "(mode 770, without the sticky bit)" in (private.why_unsafe(shared) or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(shared: Path) -> None:
    os.chown(shared, 61234, -1)
    assert private.why_unsafe(shared) == f"and {shared} belongs to the user with the number 61234"


def in_the_way(kind: str, path: Path, aside: Path) -> None:
    """Puts something else in the place of a folder, as somebody does who can."""
    path.rename(aside / "taken")
    if kind == "open":
        path.mkdir()
        path.chmod(0o777)
    elif kind == "link":
        path.symlink_to(aside)
    elif kind == "file":
        path.touch()
    elif kind == "theirs":
        path.mkdir(mode=0o700)
        os.chown(path, 61234, -1)


KINDS = [
    "nothing",
    "open",
    "link",
    "file",
    pytest.param("theirs", marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_is_replaced_as_it_is_made_is_not_believed(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mkdir: Callable[..., None] = os.mkdir

    def race(path: Path, mode: int) -> None:
        mkdir(path, mode)
        monkeypatch.setattr(os, "mkdir", mkdir)
        in_the_way(kind, path, tmp_path)

    monkeypatch.setattr(os, "mkdir", race)
    with pytest.raises(LauncherError, match=r"^TMPDIR: "):
        PrivateFolder.make(lambda path: None)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_a_folders_place_is_left_alone(shared: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "precious").touch()
    folder = PrivateFolder.make(lambda path: None)
    (folder.path / "file").touch()
    in_the_way(kind, folder.path, tmp_path)
    if folder.path.is_dir():
        (folder.path / "precious").touch()
    if kind != "nothing":
        assert PrivateFolder.find(folder.path) is None  # what the cleanup process would do
    folder.remove()
    assert list((tmp_path / "taken").iterdir()) == []
    assert (tmp_path / "precious").exists()
    if kind in ("open", "link", "theirs"):
        assert (folder.path / "precious").exists()
    shutil.rmtree(tmp_path / "taken")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_can_do_nothing_to_the_folder() -> None:
    """In a folder as /tmp is; the other user knows the name."""
    import tempfile

    around = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        around.chmod(0o1777)
        folder = around / "distsgd-launch-0"
        folder.mkdir(mode=0o700)
        child = os.fork()
        if child == 0:
            done = 1
            try:
                os.setgid(61234)
                os.setuid(61234)
                done = 0
                for attempt in (
                    lambda: folder.rename(around / "taken"),
                    folder.rmdir,
                    lambda: list(folder.iterdir()),
                    lambda: (folder / "rank").touch(),
                    lambda: folder.chmod(0o777),
                ):
                    try:
                        attempt()
                        done = 2
                    except OSError:
                        pass
            finally:
                os._exit(done)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert private.why_unsafe(around) is None
    finally:
        shutil.rmtree(around)
