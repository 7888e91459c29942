"""A program that calls `fit` under mpirun: its exceptions arrive as themselves, and its process is its own again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.parallel.launch import Done, run_command

HEAD = """
import sys

import numpy as np

import distsgd
from tests.process_state import changes, process_state

X, Y = np.random.default_rng(0).normal(size=(120, 4)), np.arange(120) % 3
OPTIONS = {"epochs": 2, "batch_size": 24, "microbatches": 4}
RANK = distsgd.rank()


class TrialPruned(Exception):
    pass


def no_copy():
    class Local(TrialPruned):
        pass

    return Local("pruned")


class Pruner(distsgd.Callback):
    def __init__(self, hook, make=lambda: TrialPruned("pruned")):
        self.make = make
        setattr(self, hook, self.prune)

    def prune(self, *arguments):
        raise self.make()


def model(params, grads, batch):
    grads["w"][...] = 1.0
    if batch.microbatch == 3 and batch.step == 1 and FAILS:
        raise TrialPruned("pruned")
    return 1.0, len(batch)


class Metric(distsgd.metrics.Metric):
    def width(self):
        return 1

    def sums(self, outputs, y):
        raise TrialPruned("pruned")

    def value(self, sums):
        return 0.0

    name = "mine"


class Array:
    def __array__(self, dtype=None, copy=None):
        raise TrialPruned("pruned")


OWN = {"optimizer": distsgd.SGD(0.1), "params": {"w": np.zeros(3)}, "validation_fraction": 0}
FAILS = True
FITS = {
    "callback": lambda: distsgd.fit("softmax", (X, Y), callbacks=[Pruner("on_step")], **OPTIONS),
    "record": lambda: distsgd.fit("softmax", (X, Y), callbacks=[Pruner("on_record")], **OPTIONS),
    "no copy": lambda: distsgd.fit("softmax", (X, Y), callbacks=[Pruner("on_step", no_copy)], **OPTIONS),
    "model": lambda: distsgd.fit(model, (X, Y), **OWN, **OPTIONS),
    "metric": lambda: distsgd.fit("softmax", (X, Y), metrics=[Metric()], validation=(X, Y), **OPTIONS),
    "data": lambda: distsgd.fit("softmax", (Array() if RANK else X, Y), **OPTIONS),
    "exit": lambda: distsgd.fit(
        "softmax", (X, Y), callbacks=[Pruner("on_step", lambda: SystemExit("enough"))], **OPTIONS
    ),
    "option": lambda: distsgd.fit("softmax", (X, Y), epochs=-1),
}
"""

CAUGHT = """
before = process_state()
for name in ("callback", "record", "model", "metric", "data"):
    try:
        FITS[name]()
    except TrialPruned as error:
        assert error.args == ("pruned",)
        (note,) = error.__notes__
        said = f"{name}: {note}"
        if error.__cause__ is not None:
            assert "in prune" in str(error.__cause__) or 'raise TrialPruned("pruned")' in str(error.__cause__)
            said += " (copy)"
        sys.stdout.write(f"{RANK} {said}\\n")
try:
    FITS["no copy"]()
except (TrialPruned, distsgd.UserCodeError) as error:
    sys.stdout.write(f"{RANK} {type(error).__name__}\\n")
try:
    FITS["option"]()
except distsgd.ConfigurationError:
    pass
FAILS = False
FITS["model"]()
with np.errstate(all="raise"):
    distsgd.fit("softmax", (X * 1e3, Y), lr=10.0, **OPTIONS).predict(X * 1e3)
sys.stdout.write(f"{RANK} changed: {changes(before, process_state())}\\n")
"""

ODD = """
class Halt(BaseException):
    pass


class NoText(TrialPruned):
    def __str__(self):
        raise ValueError("no text")


class NoAttributes(TrialPruned):
    def __setattr__(self, name, value):
        raise AttributeError("frozen")


class NoPickle(TrialPruned):
    def __reduce__(self):
        raise Halt("no pickle")


KINDS = {kind.__name__: kind for kind in (Halt, GeneratorExit, KeyboardInterrupt, NoText, NoAttributes, NoPickle)}
make = lambda: KINDS[sys.argv[1]]("odd")
for place in ("callback", "model"):
    def failing(params, grads, batch):
        grads["w"][...] = 1.0
        if batch.microbatch == 3 and batch.step == 1:
            raise make()
        return 1.0, len(batch)

    try:
        if place == "callback":
            distsgd.fit("softmax", (X, Y), callbacks=[Pruner("on_step", make)], **OPTIONS)
        else:
            distsgd.fit(failing, (X, Y), **OWN, **OPTIONS)
    except BaseException as error:
        if "uncaught" in sys.argv:
            raise
        sys.stdout.write(f"{RANK} {place} {type(error).__name__} {len(getattr(error, '__notes__', []))}\\n")
FAILS = False
FITS["model"]()
"""

UNCAUGHT = """
FITS[sys.argv[1]]()
"""

BETWEEN = """
FAILS = False
FITS["model"]()
if RANK == 1:
    raise TrialPruned("between")
FITS["model"]()
"""

HOOK = """
def hook(kind, error, trace):
    sys.stderr.write(f"hook of rank {RANK}: {kind.__name__}\\n")


sys.excepthook = hook
FITS[sys.argv[1]]()
"""


def run(folder: Path, ranks: int | None, text: str, *arguments: str) -> Done:
    (folder / "program.py").write_text(HEAD + text)
    return run_command(ranks, [sys.executable, "program.py", *arguments], folder)


OWNERS = {"callback": 0, "record": 0, "model": 1, "metric": 1, "data": 1}
"""The rank that raises; the validation set's one chunk is rank 1's."""


def test_exceptions_arrive_as_themselves_and_the_state_is_as_before(tmp_path: Path) -> None:
    done = run(tmp_path, 2, CAUGHT)
    assert done.status == 0, done.text
    assert "Traceback" not in done.text
    for rank in (0, 1):
        mine = [line[2:] for line in done.out.splitlines() if line.startswith(str(rank))]
        notes = dict(line.split(": distsgd: ") for line in mine if ": distsgd: " in line)
        assert notes.keys() == OWNERS.keys(), mine
        assert notes["callback"].startswith("a callback failed at step 1")
        assert notes["model"].startswith("the model failed on rank 1 (")
        assert "step 2, microbatch 3" in notes["model"]
        assert notes["metric"].startswith("scoring failed on rank 1")
        assert notes["data"].startswith("rank 1 on ")
        copied = {name for name, text in notes.items() if text.endswith(" (copy)")}
        assert copied == {name for name, owner in OWNERS.items() if owner != rank}
        assert ("Local" if rank == 0 else "UserCodeError") in mine
        assert mine[-1] == "changed: []"


@pytest.mark.parametrize("name", first_of(["model", "callback", "no copy", "metric", "data"], 2))
def test_an_exception_that_nothing_catches_is_printed_once(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, 3, UNCAUGHT, name)
    assert done.status == 1
    assert done.text.count("Traceback (most recent call last)") == 1, done.text
    assert "TrialPruned: pruned" in done.err or "Local: pruned" in done.err
    assert set(done.statuses.values()) <= {1}


@pytest.mark.parametrize(
    ("kind", "elsewhere"),
    [
        ("Halt", "Halt 1"),
        ("GeneratorExit", "GeneratorExit 1"),
        ("KeyboardInterrupt", "UserCodeError 0"),  # it is for the program of one process
        ("NoText", "NoText 1"),
        ("NoAttributes", "NoAttributes 1"),
        ("NoPickle", "UserCodeError 0"),
    ],
)
def test_an_unusual_exception_of_one_rank_ends_the_fit_on_all(tmp_path: Path, kind: str, elsewhere: str) -> None:
    """One that is no Exception, or whose class raises when it is looked at; the next fit then runs on all ranks."""
    done = run(tmp_path, 2, ODD, kind)
    assert done.status == 0, done.text
    own = f"{kind} 1"
    expected = [f"0 callback {own}", f"0 model {elsewhere}", f"1 callback {elsewhere}", f"1 model {own}"]
    assert sorted(done.out.splitlines()) == expected


@pytest.mark.parametrize("kind", ["Halt", "KeyboardInterrupt", "NoText", "NoAttributes"])
def test_an_unusual_exception_that_nothing_catches_is_printed_once(tmp_path: Path, kind: str) -> None:
    done = run(tmp_path, 2, ODD, kind, "uncaught")
    assert done.status == 1
    assert done.text.count("Traceback (most recent call last)") == 1, done.text
    assert kind in done.err


def test_sys_exit_in_a_callback_ends_all_ranks(tmp_path: Path) -> None:
    done = run(tmp_path, 2, UNCAUGHT, "exit")
    assert done.err.count("enough") == 1
    assert done.statuses == {0: 1, 1: 1}


def test_an_error_of_distsgd_that_nothing_catches_is_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, 3, UNCAUGHT, "option")
    assert done.status == 2
    lines = [line for line in done.err.splitlines() if not line.startswith("Abort(")]
    assert len([line for line in lines if line.startswith("distsgd: error: fit: epochs: ")]) == 1, done.err
    assert "Traceback" not in done.err


def test_an_exception_between_two_fits_ends_all_ranks(tmp_path: Path) -> None:
    """The others are in the next fit already; the program's own hook, Python's, prints the traceback."""
    done = run(tmp_path, 3, BETWEEN)
    assert done.status == 1
    assert done.err.count("Traceback (most recent call last)") == 1, done.err
    assert "TrialPruned: between" in done.err


@pytest.mark.parametrize("name", ["model", "option"])
def test_the_programs_own_hook_is_called(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, 2, HOOK, name)
    assert done.status == (2 if name == "option" else 1)
    owner, kind = (0, "ConfigurationError") if name == "option" else (1, "TrialPruned")
    assert done.err.count("hook of rank") == 1, done.err
    assert f"hook of rank {owner}: {kind}" in done.err
