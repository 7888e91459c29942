"""Under mpirun, one call of fit at a time: a second one is refused, for its messages would mix with the first one's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.parallel.launch import run_command

PROGRAM = """
import sys
import threading
import numpy as np
import distsgd

x = np.random.default_rng(0).normal(size=(200, 5))
y = (x[:, 0] > 0).astype(int)
ENDLESS = {"epochs": 10**6, "early_stopping": "epochs", "patience": 0}

def one(**options):
    return distsgd.fit("softmax", (x, y), **{"epochs": 1, **options})

class Inside(distsgd.Callback):
    def on_record(self, record):
        one()

def in_threads():
    threading.Thread(target=one, kwargs=ENDLESS, daemon=True).start()
    # In the main thread once the first has begun, on all ranks; a third is refused, too, in whichever thread.
    threading.Timer(2, one).start()
    threading.Event().wait(600)

def in_a_callback():
    one(callbacks=[Inside()])

def one_after_the_other():
    for _ in range(2):
        thread = threading.Thread(target=lambda: print(one().summary["status"] + "\\n", end="", flush=True))
        thread.start()
        thread.join()

def another_error():
    one()
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    print(one().summary["status"] + "\\n", end="", flush=True)

globals()[sys.argv[1]]()
"""


@pytest.mark.parametrize(("case", "ranks"), first_of([("in_threads", 2), ("in_a_callback", 2), ("in_threads", 3)], 2))
def test_a_second_fit_at_the_same_time_is_refused(tmp_path: Path, case: str, ranks: int) -> None:
    done = run_command(ranks, [sys.executable, "-c", PROGRAM, case], tmp_path)
    assert done.status == 2, done.text
    assert "fit: another fit is in flight on these ranks" in done.err
    assert done.err.count("another fit is in flight") == 1, done.err
    assert "Traceback" not in done.err


def test_fits_one_after_the_other_may_be_in_any_thread(tmp_path: Path) -> None:
    done = run_command(2, [sys.executable, "-c", PROGRAM, "one_after_the_other"], tmp_path)
    assert (done.status, done.out.split()) == (0, ["completed"] * 4), done.text


def test_what_else_fails_in_a_thread_is_the_programs_own_business(tmp_path: Path) -> None:
    done = run_command(2, [sys.executable, "-c", PROGRAM, "another_error"], tmp_path)
    assert (done.status, done.out.split()) == (0, ["completed"] * 2), done.text
    assert done.err.count("ZeroDivisionError") == 2
