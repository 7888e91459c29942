"""The asynchronous writer: one thing at a time, tried again where it fails, and never silently lost."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from distsgd.core.errors import CheckpointError, OutputError, UserCodeError
from distsgd.run.files.background import BackgroundWriter, Task
from tests.waiting import wait_until


class Bench:
    """A writer with what it printed, and tasks that wait for a word, or fail."""

    def __init__(self) -> None:
        self.printed: list[str] = []
        self.done: list[str] = []
        self.tries = 0
        self.writer = BackgroundWriter(self.printed.append, first_pause=0.01, longest_pause=0.05)

    def task(self, name: str, before: Callable[[], object] = lambda: None) -> Task:
        def write() -> None:
            self.tries += 1
            before()
            self.done.append(name)

        return Task(name, write)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.writer.close()


def fail(text: str = "No space left") -> None:
    raise CheckpointError(text)


def wait_for(condition: Callable[[], bool]) -> None:
    wait_until(condition, "what the writer does", pause=0.001)


def test_it_is_written_elsewhere(bench: Bench) -> None:
    threads: list[str] = []
    bench.writer.submit(bench.task("a", lambda: threads.append(threading.current_thread().name)))
    bench.writer.finish()
    assert threads == ["distsgd-writer"]
    assert (bench.done, bench.printed) == (["a"], [])
    assert not bench.writer.busy()


def test_without_a_task_there_is_no_thread(bench: Bench) -> None:
    before = threading.active_count()
    assert not bench.writer.busy(patience=1000)
    bench.writer.finish()
    assert threading.active_count() == before


def test_busy_while_it_writes(bench: Bench) -> None:
    released = threading.Event()
    bench.writer.submit(bench.task("a", lambda: released.wait(1000)))
    assert bench.writer.busy()
    assert bench.writer.busy(patience=0.01)
    assert bench.printed == ["a is still being written after 0.01 s; others are skipped"]
    assert bench.writer.busy(patience=1000), "nobody waits twice for what hangs"
    assert len(bench.printed) == 1
    released.set()
    wait_for(lambda: not bench.writer.busy())
    assert bench.done == ["a"]


def test_waiting_ends_with_the_writing(bench: Bench) -> None:
    bench.writer.submit(bench.task("a", lambda: time.sleep(0.05)))
    assert not bench.writer.busy(patience=1000)
    assert bench.done == ["a"]
    assert bench.printed == []


def test_tried_again_until_it_works(bench: Bench) -> None:
    buffer = threading.Event()
    bench.writer.submit(bench.task("a", lambda: None if buffer.is_set() else fail()))
    wait_for(lambda: bench.tries >= 4)
    assert not bench.writer.busy(), "what has failed keeps no newer one waiting"
    assert bench.printed == ["No space left; the last good checkpoint stays, and this is tried again"]
    buffer.set()
    wait_for(lambda: bench.done == ["a"])
    wait_for(lambda: len(bench.printed) == 2)
    assert bench.printed[1] == "checkpoints are written again"
    bench.writer.finish()


def test_a_newer_one_takes_its_place(bench: Bench) -> None:
    bench.writer.submit(bench.task("a", fail))
    wait_for(lambda: bench.tries >= 2)
    bench.writer.submit(bench.task("b"))
    bench.writer.finish()
    assert bench.done == ["b"]


def test_a_newer_one_comes_while_the_old_is_tried(bench: Bench) -> None:
    inside, released = threading.Event(), threading.Event()

    def second_try_hangs() -> None:
        if bench.tries == 1:
            fail()
        inside.set()
        released.wait(1000)

    bench.writer.submit(bench.task("a", second_try_hangs))
    assert inside.wait(10)
    bench.writer.submit(bench.task("b"))
    released.set()
    bench.writer.finish()
    assert bench.done == ["a", "b"]


def test_finish_tries_a_few_times_more(bench: Bench) -> None:
    bench.writer.submit(bench.task("a", lambda: fail() if bench.tries < 3 else None))
    bench.writer.finish()
    assert bench.done == ["a"]


def test_finish_raises_what_stays(bench: Bench) -> None:
    bench.writer.submit(bench.task("a", fail))
    with pytest.raises(CheckpointError, match="No space left"):
        bench.writer.finish()
    assert 3 <= bench.tries <= 5
    tries = bench.tries
    bench.writer.finish()
    time.sleep(0.1)
    assert bench.tries == tries, "what was given up is tried no more"
    bench.writer.submit(bench.task("b"))
    bench.writer.finish()
    assert bench.done == ["b"]


def test_finish_ends_a_long_pause() -> None:
    printed: list[str] = []
    writer = BackgroundWriter(printed.append, first_pause=60, last_tries=2)
    tries: list[int] = []

    def write() -> None:
        tries.append(1)
        if len(tries) < 2:
            fail()

    writer.submit(Task("a", write))
    wait_for(lambda: bool(printed))
    writer.finish()
    assert len(tries) == 2
    writer.close()


def test_defects_show_their_traceback(bench: Bench) -> None:
    def defect() -> None:
        raise ZeroDivisionError("mine")

    bench.writer.submit(bench.task("a", defect))
    with pytest.raises(UserCodeError, match=r"(?s)a could not be written:.*Traceback.*ZeroDivisionError: mine"):
        bench.writer.finish()


def test_what_the_system_refuses_is_one_sentence(bench: Bench) -> None:
    def refuse() -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    bench.writer.submit(bench.task("a", refuse))
    with pytest.raises(OutputError, match=r"^a could not be written: Permission denied$"):
        bench.writer.finish()


def test_close_lets_it_come_to_its_end(bench: Bench) -> None:
    bench.writer.submit(bench.task("a", lambda: time.sleep(0.05)))
    bench.writer.close()
    assert bench.done == ["a"]


def test_close_gives_up_what_fails(bench: Bench) -> None:
    bench.writer.submit(bench.task("a", fail))
    wait_for(lambda: bench.tries >= 1)
    bench.writer.close()
    tries = bench.tries
    time.sleep(0.1)
    assert bench.tries == tries
    assert bench.done == []


def test_many_in_a_row(bench: Bench) -> None:
    """As with a checkpoint every step: none is lost, in order."""
    for number in range(200):
        assert not bench.writer.busy(patience=1000)
        bench.writer.submit(bench.task(str(number)))
    bench.writer.finish()
    assert bench.done == [str(number) for number in range(200)]
