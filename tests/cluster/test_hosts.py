"""Ranks on several hosts, which are network namespaces: through messages, with the bits of one host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.cluster.hosts import Hosts, why_not
from tests.cluster.tools import wait_until
from tests.parallel.launch import LIMIT, ROOT, environment, find_mpirun, once, result, summary, train

OPTIONS = (
    *("--epochs", 3, "--batch-size", 150, "--hidden", 40, 30, "--dropout", 0.1, "--batch-norm", "--optimizer", "adam"),
    *("--clip-norm", 1.0, "--log-every", 4),
)
SLOW = """
import time

from distsgd import Callback


class Slow(Callback):
    def on_step(self, step, loss, examples):
        time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def all_hosts() -> Iterator[Hosts]:
    reason = why_not() or find_mpirun()[1]
    if reason:
        pytest.skip(reason)
    with ExitStack() as stack:
        try:
            hosts = stack.enter_context(Hosts(4))
        except (OSError, RuntimeError) as problem:  # a kernel without bridges or veth, for one
            pytest.skip(f"there can be no hosts here: {problem}")
        yield hosts


class Launcher:
    """Starts training on the hosts."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.started: list[subprocess.Popen[str]] = []

    def start(self, places: dict[str, int], out: Path, *more: object) -> subprocess.Popen[str]:
        mpirun, _ = find_mpirun()
        assert mpirun is not None
        command = [sys.executable, "-m", "distsgd.train", *once(("--out", out, *OPTIONS, *more))]
        process = subprocess.Popen(
            self.hosts.mpirun(mpirun, places, out.parent, command),
            env=environment({**self.hosts.environment, "PYTHONPATH": str(ROOT)}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process


@pytest.fixture
def launcher(all_hosts: Hosts) -> Iterator[Launcher]:
    launcher = Launcher(all_hosts)
    yield launcher
    all_hosts.clear()
    for process in launcher.started:
        process.communicate(timeout=LIMIT)


@pytest.fixture(scope="module")
def one_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one-host") / "run"
    train(2, out, *OPTIONS)
    return out


def wait_for_training(process: subprocess.Popen[str], out: Path) -> None:
    wait_until(lambda: (out / "metrics.jsonl").exists() or process.poll() is not None, 30, "the first record")
    assert process.poll() is None, process.communicate()[0]


def end(process: subprocess.Popen[str], status: int = 0) -> str:
    printed, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == status, printed
    return printed


@pytest.mark.parametrize(
    "places", first_of([{"h1": 3, "h2": 1}, {"h1": 1, "h2": 1}, {"h1": 1, "h2": 1, "h3": 1, "h4": 1}]), ids=str
)
def test_same_bits_on_several_hosts(launcher: Launcher, tmp_path: Path, one_host: Path, places: dict[str, int]) -> None:
    printed = end(launcher.start(places, tmp_path / "run"))
    assert f"ranks      {sum(places.values())} on {', '.join(places)}," in printed
    assert result(tmp_path / "run") == result(one_host)
    assert launcher.hosts.leftovers() == []


def test_rounded_sums_on_two_hosts(launcher: Launcher, tmp_path: Path) -> None:
    """Two bytes a number between them, with the bits of a rank alone; what doesn't fit is refused."""
    wire = ("--wire", "bfloat16")
    train(None, tmp_path / "alone", *OPTIONS, *wire)
    for ranks in (1, 2):
        end(launcher.start({"h1": ranks, "h2": ranks}, tmp_path / f"{ranks}", *wire))
        assert result(tmp_path / f"{ranks}") == result(tmp_path / "alone")
    printed = end(launcher.start({"h1": 1, "h2": 2}, tmp_path / "refused", *wire), 2)
    assert "ranks apart: 1 on h1, 2 on h2" in printed


def test_stopped_on_two_hosts_and_gone_on_with_on_three(launcher: Launcher, tmp_path: Path, one_host: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    process = launcher.start({"h1": 1, "h2": 1}, tmp_path / "run", "--callback", "slow.py:Slow")
    wait_for_training(process, tmp_path / "run")
    process.send_signal(signal.SIGUSR1)
    end(process, 75)
    assert summary(tmp_path / "run")["status"] == "stopped"
    printed = end(launcher.start({"h2": 1, "h3": 1, "h4": 1}, tmp_path / "run"))
    assert "3 on h2, h3, h4," in printed
    assert result(tmp_path / "run") == result(one_host)


def test_a_killed_rank_ends_all_hosts(launcher: Launcher, tmp_path: Path) -> None:
    process = launcher.start({"h1": 1, "h2": 1, "h3": 1}, tmp_path / "run", "--epochs", 10**6, "--patience", 0)
    wait_for_training(process, tmp_path / "run")
    ranks = [number for number, words in launcher.hosts.processes().items() if words.startswith(sys.executable)]
    assert len(ranks) == 3
    os.kill(ranks[-1], signal.SIGKILL)
    printed, _ = process.communicate(timeout=10)
    assert process.returncode != 0, printed
    wait_until(lambda: not launcher.hosts.processes(), 5, "the end of all ranks")
