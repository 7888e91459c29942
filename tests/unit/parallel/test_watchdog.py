"""What a watchdog says, and when: the status table is filled in by hand, and time is a number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

import distsgd
from distsgd.core.processes import ProcessStat
from distsgd.core.status_table import Collective, Field, Heartbeat, Phase, StatusTable, private_heartbeat, where
from distsgd.parallel import Communicator, watchdog
from distsgd.parallel.watchdog import Watchdog

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="what processes do is read from /proc")


class Ranks:
    """Ranks of one run, all played by this process, each with a watchdog that is asked by hand."""

    def __init__(self, hosts: Sequence[str], limit: float = 100.0) -> None:
        self.hosts = hosts
        boards = {host: self._table(len(hosts)) for host in hosts}
        self.heartbeat, self.dogs, self.lines = [], [], []
        for rank, host in enumerate(hosts):
            neighbours = [other for other, name in enumerate(hosts) if name == host]
            dog = Watchdog(boards[host], rank, hosts, neighbours, lambda: None)
            dog.limit = limit
            self.lines.append(boards[host].line(rank))
            self.heartbeat.append(Heartbeat(self.lines[rank]))
            self.dogs.append(dog)
        self.now = time.monotonic()
        self.silent: set[int] = set()
        self.pass_time(0.0)

    @staticmethod
    def _table(ranks: int) -> StatusTable:
        return StatusTable(memoryview(bytearray(StatusTable.bytes_for(ranks))), ranks)

    def all_at(self, phase: Phase, step: int = 0) -> None:
        for heartbeat in self.heartbeat:
            heartbeat.set_phase(phase, step)

    def wait(self, *ranks: int, collective: Collective = Collective.BARRIER) -> None:
        for rank in ranks:
            self.heartbeat[rank].enter(collective)
        self.pass_time(0.0)

    def pass_time(self, seconds: float) -> dict[int, str]:
        """Half a second at a time; what each rank's watchdog reported first."""
        printed: dict[int, str] = {}
        steps = max(round(seconds * 2), 1)
        for _ in range(steps):
            self.now += seconds / steps
            for rank, dog in enumerate(self.dogs):
                reported = None if rank in self.silent else dog.look(self.now)
                if reported is not None:
                    printed.setdefault(rank, reported)
        return printed


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def is_played_by(ranks: Ranks, rank: int, process: int) -> None:
    found = watchdog.stat(process)
    assert found is not None
    ranks.lines[rank][Field.PROCESS], ranks.lines[rank][Field.STARTED] = process, found.started


def test_nothing_is_printed_while_ranks_step() -> None:
    ranks = Ranks(["a", "a"])
    for step in range(500):
        ranks.all_at(Phase.STEP, step)
        ranks.wait(0, 1)
        assert ranks.pass_time(0.5) == {}
        for heartbeat in ranks.heartbeat:
            heartbeat.exit()


def test_a_busy_rank_is_named_by_the_first_that_waits() -> None:
    ranks = Ranks(["a", "a", "a", "a"])
    ranks.all_at(Phase.STEP, 57)
    ranks.wait(1, 2, 3)
    assert ranks.pass_time(99) == {}
    printed = ranks.pass_time(2)
    assert list(printed) == [1]
    assert printed[1].startswith("rank 0 on a is busy in step 57")
    assert printed[1].endswith("ranks 1 to 3 have waited 100 s for it in a barrier in step 57")


def test_another_rank_speaks_where_the_first_does_not() -> None:
    ranks = Ranks(["a", "a", "a"])
    ranks.all_at(Phase.STEP, 1)
    ranks.wait(0, 1)
    assert list(ranks.pass_time(102)) == [0]
    assert list(ranks.pass_time(5)) == [0, 1]


@pytest.mark.parametrize("phase", [Phase.START, Phase.CALLBACK, Phase.VALIDATION, Phase.CHECKPOINT, Phase.END])
def test_a_rank_has_more_time_between_steps(phase: Phase) -> None:
    ranks = Ranks(["a", "a"])
    ranks.all_at(Phase.STEP, 7)
    ranks.heartbeat[0].set_phase(phase, 7)
    ranks.wait(1)
    assert ranks.pass_time(999) == {}
    assert where(7 * 16 + phase) in ranks.pass_time(3)[1]


def test_progress_counts_from_its_last_sign() -> None:
    ranks = Ranks(["a", "a"], limit=10.0)
    ranks.all_at(Phase.VALIDATION, 7)
    ranks.wait(1)
    for _ in range(30):
        assert ranks.pass_time(90) == {}
        ranks.heartbeat[0].progressed()
    assert ranks.pass_time(99) == {}
    assert list(ranks.pass_time(4)) == [1]


def test_a_rank_that_comes_late_has_not_kept_the_others_waiting_since() -> None:
    ranks = Ranks(["a", "a"], limit=10.0)
    ranks.all_at(Phase.VALIDATION, 7)
    ranks.wait(1)
    for _ in range(3):
        ranks.heartbeat[0].progressed()
        assert ranks.pass_time(90) == {}
    ranks.wait(0)
    assert ranks.pass_time(99) == {}
    assert "no rank is missing: they wait for each other" in ranks.pass_time(5)[0]


def test_a_users_program_around_training_has_more_time_too() -> None:
    ranks = Ranks(["a", "a"])
    ranks.all_at(Phase.OUTSIDE)
    ranks.wait(1)
    assert ranks.pass_time(999) == {}
    assert "rank 0 on a is busy outside of training" in ranks.pass_time(3)[1]


def test_a_rank_that_trains_alone_is_not_missed() -> None:
    ranks = Ranks(["a", "a"])
    ranks.all_at(Phase.OUTSIDE)
    alone = Communicator.heartbeat
    alone.set_phase(Phase.STEP, 5)
    try:
        ranks.wait(1)
        assert ranks.pass_time(3_000) == {}
    finally:
        alone.set_phase(Phase.OUTSIDE, 5)
    assert "rank 0 on a is busy outside of training" in ranks.pass_time(1_002)[1]


def test_a_training_that_failed_at_its_start_is_over() -> None:
    with pytest.raises(distsgd.DataError):
        distsgd.fit("softmax", np.zeros((4, 2)), np.zeros(3, int))
    with pytest.raises(distsgd.ConfigurationError):
        distsgd.fit("softmax", np.zeros((4, 2)), np.arange(4), microbatches=2, class_weights=(1.0,))
    ranks = Ranks(["a", "a"])
    ranks.all_at(Phase.OUTSIDE)
    ranks.wait(1)
    assert "rank 0 on a is busy outside of training" in ranks.pass_time(1_002)[1]


def test_never() -> None:
    ranks = Ranks(["a", "a"], limit=0.0)
    ranks.all_at(Phase.STEP, 3)
    ranks.wait(1)
    assert ranks.pass_time(3_000) == {}


@needs_proc
@pytest.mark.parametrize("limit", [0.0, 100.0])
def test_a_rank_that_is_gone_is_noticed_at_once(child: subprocess.Popen[bytes], limit: float) -> None:
    ranks = Ranks(["a", "a", "a"], limit=limit)
    ranks.all_at(Phase.CHECKPOINT, 3)
    is_played_by(ranks, 2, child.pid)
    ranks.silent = {2}
    ranks.wait(0, 1)
    assert ranks.pass_time(1.5) == {}
    child.kill()
    child.wait()
    assert ranks.pass_time(1.5) == {}  # the launcher's turn
    printed = ranks.pass_time(1.5)
    assert printed[0].startswith("rank 2 on a has left early, in the checkpoint after step 3")


@needs_proc
def test_where_the_speaker_died_the_next_one_speaks_at_once(child: subprocess.Popen[bytes]) -> None:
    """Its abort may have ended itself alone."""
    ranks = Ranks(["a", "a", "a"])
    ranks.all_at(Phase.STEP, 3)
    is_played_by(ranks, 0, child.pid)
    ranks.wait(0, 1)
    assert list(ranks.pass_time(101)) == [0]
    child.kill()
    child.wait()
    ranks.silent = {0}
    assert list(ranks.pass_time(0.5)) == [1]


def test_who_is_left_alone_when_the_job_was_ended_leaves_without_a_word() -> None:
    ranks = Ranks(["a", "a", "a"])
    ranks.all_at(Phase.STEP, 3)
    ranks.wait(0, 1)
    assert list(ranks.pass_time(101)) == [0]
    assert not ranks.dogs[1].left_alone(ranks.now)
    ranks.dogs[0].stacks = False
    ranks.dogs[0].report("what is wrong")
    ranks.silent = {0}
    assert not ranks.dogs[1].left_alone(ranks.now)
    assert ranks.pass_time(0.5) == {}
    assert not ranks.dogs[1].left_alone(ranks.now)
    assert ranks.pass_time(1) == {}
    assert ranks.dogs[1].left_alone(ranks.now)
    assert not Ranks(["a", "a"]).dogs[1].left_alone(ranks.now)


def test_of_ranks_that_find_it_at_the_same_moment_one_reports(capsys: pytest.CaptureFixture[str]) -> None:
    ranks = Ranks(["a", "a", "a", "b"])
    together = threading.Barrier(4)

    def report(rank: int) -> None:
        together.wait()
        ranks.dogs[rank].report(f"rank {rank} says")

    threads = [threading.Thread(target=report, args=[rank]) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(capsys.readouterr().err.splitlines()) == 2, "one for each host"


def test_a_rank_whose_program_ends_is_noticed_at_once() -> None:
    ranks = Ranks(["a", "a"])
    ranks.all_at(Phase.OUTSIDE)
    ranks.wait(0)
    ranks.dogs[1].leave()
    assert "rank 1 on a has left early" in ranks.pass_time(4)[0]


@needs_proc
def test_a_stopped_rank_is_stopped_whatever_it_was_about(child: subprocess.Popen[bytes]) -> None:
    ranks = Ranks(["a", "a"])
    ranks.all_at(Phase.VALIDATION, 3)
    is_played_by(ranks, 0, child.pid)
    ranks.heartbeat[0].enter(Collective.BARRIER)  # it may have been stopped inside a collective
    ranks.silent = {0}
    os.kill(child.pid, signal.SIGSTOP)
    ranks.wait(1)
    assert ranks.pass_time(99) == {}
    assert ranks.pass_time(3)[1].startswith("rank 0 on a is stopped in the validation after step 3")


def test_a_rank_without_a_sign_of_life() -> None:
    ranks = Ranks(["a", "a"])
    ranks.all_at(Phase.STEP, 3)
    ranks.silent = {0}
    ranks.wait(1)
    assert "rank 0 on a shows no sign of life in step 3" in ranks.pass_time(103)[1]


def test_time_in_which_a_process_was_stopped_itself_does_not_count() -> None:
    ranks = Ranks(["a", "a"])
    ranks.all_at(Phase.STEP, 3)
    ranks.wait(1)
    ranks.pass_time(90)
    ranks.now += 3600
    assert ranks.pass_time(95) == {}
    assert list(ranks.pass_time(10)) == [1]


def test_hosts_where_no_rank_is_missing_name_the_others() -> None:
    ranks = Ranks(["a", "a", "b", "c"])
    ranks.all_at(Phase.STEP, 57)
    ranks.wait(0, 1, 3, collective=Collective.ALLTOALL)
    assert ranks.pass_time(101) == {}  # host b might have somebody who waits and knows more
    printed = ranks.pass_time(3)
    assert sorted(printed) == [0, 3]
    assert printed[0] == (
        "ranks 0 and 1 on a have waited 102 s in an all-to-all in step 57, and all ranks of that host are there: "
        "a rank on b, c is missing"
    )


def test_the_host_of_the_missing_rank_speaks_first() -> None:
    ranks = Ranks(["a", "b", "b"])
    ranks.all_at(Phase.STEP, 57)
    ranks.wait(0, 2)
    assert list(ranks.pass_time(101)) == [2]


@needs_proc
def test_files_that_do_not_answer_hold_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(["a", "a"])
    ranks.all_at(Phase.CHECKPOINT, 4)
    real = watchdog.stat
    held = ProcessStat("D", os.getppid(), real(os.getpid()).started)  # type: ignore[union-attr]
    monkeypatch.setattr(watchdog, "stat", lambda process: held)
    ranks.pass_time(50)
    ranks.heartbeat[0].progressed()
    printed = ranks.pass_time(60)
    assert printed == {1: "rank 1 on a has waited 100 s for files or devices in the checkpoint after step 4"}


def test_a_stamp_is_cheap() -> None:
    """A step sets its phase once, and enters and exits a wait twice: in the time of 40 calls of a function."""
    heartbeat = private_heartbeat()

    def step(number: int) -> None:
        heartbeat.set_phase(Phase.STEP, number)
        heartbeat.enter(5)
        heartbeat.exit()
        heartbeat.enter(5)
        heartbeat.exit()

    def nothing(number: int) -> None:
        pass

    def seconds(function: Callable[[int], None]) -> float:
        began = time.thread_time()
        for number in range(1000):
            function(number)
        return time.thread_time() - began

    assert min(seconds(step) / seconds(nothing) for _ in range(20)) < 40  # about 10


def test_a_status_table_is_known_by_its_mark() -> None:
    table = StatusTable(memoryview(bytearray(StatusTable.bytes_for(3))), 3)
    assert not table.marked
    table.mark()
    assert table.marked
    assert StatusTable(memoryview(bytearray(StatusTable.bytes_for(3))), 3).line(2).nbytes == 64
    assert where(5 * 16 + 15) == "after step 5"
