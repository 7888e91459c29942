"""Two calls of fit in two threads of one process: each has the bits that it has alone, and leaves BLAS as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from distsgd.core.errors import ConfigurationError
from distsgd.core.runtime import single_threaded_blas
from distsgd.parallel import Communicator
from distsgd.parallel.serial import SerialCommunicator
from distsgd.run.caller import used_by_one_fit
from tests.threads import run_on_threads
from tests.waiting import LIMIT

ROOT = Path(__file__).parents[3]

PROGRAM = """
import threading
import numpy as np
import distsgd
from threadpoolctl import threadpool_info, threadpool_limits

x = np.random.default_rng(0).normal(size=(1600, 300)).astype("f4")
y = (x[:, :5].sum(1) > 0).astype(int)
hashes, problems = {}, []

def one(name, epochs, *callbacks):
    try:
        result = distsgd.fit("mlp", (x, y), hidden=(700, 500), optimizer="sgd", learning_rate=0.01, epochs=epochs,
                             batch_size=1400, threads=1, seed=3, callbacks=callbacks)
        hashes[name] = result.summary["parameters_sha256"]
    except BaseException as error:
        problems.append(repr(error))
        raise

class Meets(distsgd.Callback):
    '''Begins, waits for the other to have begun too; the longer one goes on when the shorter one has ended.'''
    def __init__(self, mine, other, ended=None):
        self.mine, self.other, self.ended = mine, other, ended
    def on_step(self, *anything):
        self.mine.set()
        assert self.other.wait(30)
        if self.ended is not None:
            assert self.ended.wait(30)

def blas():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

BEFORE
before = blas()
one("alone", 4)
long, short, ended = threading.Event(), threading.Event(), threading.Event()
threads = [
    threading.Thread(target=lambda: (one("short", 1, Meets(short, long)), ended.set())),
    threading.Thread(target=one, args=("long", 4, Meets(long, short, ended))),
]
for thread in threads:
    thread.start()
    assert short.wait(30)  # the shorter one comes first, and leaves first
for thread in threads:
    thread.join(60)
print(hashes.get("long") == hashes["alone"], blas() == before, sorted(hashes), problems, before)
"""


@pytest.mark.parametrize("before", ["", "threadpool_limits(limits=2, user_api='blas')"], ids=["plain", "limited"])
def test_two_fits_have_the_bits_that_they_have_alone(before: str) -> None:
    """Also where the main thread has limited BLAS itself, after which threadpoolctl 3.8 ignores all other threads."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("BEFORE", before)],
        capture_output=True, text=True, env=environment, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True True ['alone', 'long', 'short'] []"), done.stdout + done.stderr


def counts() -> list[int]:
    from threadpoolctl import threadpool_info

    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.fixture
def two() -> list[int]:
    """BLAS has two threads, where it can have as many."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    np.ones((2, 2)) @ np.ones((2, 2))
    threadpool_limits(limits=2, user_api="blas")
    return counts()


def test_the_last_one_out_gives_back_what_was(two: list[int]) -> None:
    entered, left, one = threading.Event(), threading.Event(), [1] * len(two)

    def other() -> None:
        with single_threaded_blas():
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=other)
    with single_threaded_blas():
        thread.start()
        assert entered.wait(10)
        assert counts() == one
    assert counts() == one, "the other is still inside"
    left.set()
    thread.join()
    assert counts() == two


def test_errors_and_calls_inside_of_each_other_give_back_what_was(two: list[int]) -> None:
    one = [1] * len(two)
    with suppress(KeyError), single_threaded_blas():
        with suppress(KeyError), single_threaded_blas():
            raise KeyError
        assert counts() == one
        raise KeyError
    assert counts() == two


def test_several_fits_may_use_one_process_and_one_alone_several_ranks() -> None:
    alone = SerialCommunicator()
    with used_by_one_fit(alone), used_by_one_fit(alone):
        pass

    def rank(communicator: Communicator) -> None:
        for _ in range(2):
            with suppress(KeyError), used_by_one_fit(communicator):
                with (
                    pytest.raises(ConfigurationError, match="another fit is in flight on these ranks"),
                    used_by_one_fit(communicator),
                ):
                    pass
                raise KeyError

    run_on_threads(2, rank)
