"""Bad input of every kind gets one sentence from rank 0 and one exit status on all ranks, soon, and nothing is lost.

Half of the table runs in one process, a quarter in one mpirun of three ranks (bad_input_ranks.py), and with the long
tests all of it in both places; a sample of it once more as a user would run it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.cases import first_of
from tests.parallel.bad_files import TEMPLATE, Case, Unavailable, unmount
from tests.parallel.bad_hostile import HOSTILE
from tests.parallel.bad_inputs import CASES
from tests.parallel.launch import environment, module, once, run_command

RANKS = 3
SECONDS = 20.0
"""Of the processor for one of the files made to keep a reader busy, which take less than 2 where nothing else runs."""
LONG = 580
"""Seconds for the whole table, which takes half a minute where nothing else runs; a hang is still an error."""
pytestmark = pytest.mark.timeout(600)
NO_NETWORK = {f"DISTSGD_{name}_URL": "http://127.0.0.1:9" for name in ("MNIST", "CIFAR_10")}
SAMPLE = (
    "a flipped bit in the last number", "a model that raises", "a full disk with a run", "an unknown key",
    "a configuration that is a pipe", "images cut after 15 bytes", "a label below 0", "a pickle that runs a command",
)  # fmt: skip


@dataclass
class Outcome:
    """What came of a case: by rank, and what changed in its folder."""

    statuses: list[int | None]
    seconds: list[float]
    out: list[str]
    err: list[str]
    changed: list[str]


def contents(folder: Path) -> dict[str, object]:
    """Everything below a folder: kind, size, time and content of each file; but not what Python keeps compiled."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        there = path.lstat()
        name = os.fsdecode(path.relative_to(folder))
        if stat.S_ISREG(there.st_mode) and there.st_size < 1 << 28 and there.st_mode & 0o400:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = (there.st_mode, there.st_size, there.st_mtime_ns, digest)
        elif stat.S_ISLNK(there.st_mode):
            found[name] = os.readlink(path)
        else:  # a folder's time changes with a temporary file in it, which is gone again
            found[name] = (there.st_mode, 0 if path.is_dir() else there.st_size)
    return found


def difference(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """The names of what is new, gone or different."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def make_template(place: Path) -> None:
    """The run that cases begin with, in the folder beside theirs."""
    options = ("--model", "softmax", "--max-steps", 3, "--checkpoint-every", 1, "--out", TEMPLATE)
    done = module(None, "train", place, *options)
    assert done.status == 0, done.text


def begin(case: Case, folder: Path) -> str:
    """Makes the case's folder; returns why it can't be had here, or nothing."""
    folder.mkdir()
    try:
        case.make(folder)
    except Unavailable as reason:
        return str(reason)
    return ""


def rows(ranks: int | None) -> list[Any]:
    """Each case in one process or on several ranks, marked `long` where that isn't its place."""
    place = "one process" if ranks is None else f"{ranks} ranks"
    found = []
    for number, (name, case) in enumerate(CASES.items()):
        is_its_place = number % 2 == 0 and case.least == 1 if ranks is None else number % 4 == 1 or case.least > 1
        found.append(pytest.param(ranks, name, id=f"{place}-{name}", marks=() if is_its_place else pytest.mark.long))
    return found


@pytest.fixture(scope="module")
def tables(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[int | None], dict[str, Outcome | str]]]:
    """By number of ranks, when it is first asked for, and by case that is selected: the outcome, or why it can't be had
    here."""
    selected = [one.callspec.params for one in request.session.items if hasattr(one, "callspec")]
    with ExitStack() as stack:

        @cache
        def outcomes(ranks: int | None) -> dict[str, Outcome | str]:
            names = {one["name"] for one in selected if "name" in one and one.get("ranks", 0) == ranks}
            cases = {name: case for name, case in CASES.items() if name in names}
            return stack.enter_context(contextmanager(run_table)(tmp_path_factory.mktemp("bad"), cases, ranks))

        yield outcomes


def run_table(place: Path, cases: Mapping[str, Case], ranks: int | None) -> Iterator[dict[str, Outcome | str]]:
    """Runs all cases in one mpirun, or in one process."""
    make_template(place)
    reasons = {
        name: f"takes {case.least} ranks" if (ranks or 1) < case.least else begin(case, place / f"begun-{number}")
        for number, (name, case) in enumerate(cases.items())
    }
    tried = [(number, name) for number, name in enumerate(cases) if not reasons[name]]
    for index, (number, _) in enumerate(tried):
        (place / "kept" / f"{index}").mkdir(parents=True)
        (place / f"{index}").symlink_to(f"begun-{number}")
    before = {name: contents(place / f"begun-{number}") for number, name in tried}
    lines = [(cases[name].command, once(shlex.split(cases[name].line))) for _, name in tried]
    (place / "cases.json").write_text(json.dumps(lines))
    try:
        program = Path(__file__).with_name("bad_input_ranks.py")
        done = run_command(ranks, [sys.executable, str(program), str(place)], place, limit=LONG, extra=NO_NETWORK)
        ended = [len((place / f"done.{rank}").read_text().splitlines()) for rank in range(ranks or 1)]
        if done.status or min(ended) < len(tried):
            name = tried[min(min(ended), len(tried) - 1)][1]
            pytest.fail(f"{name!r} ended or held up the ranks, with status {done.status}:\n{done.text}")
        yield dict(reasons) | {
            name: collect(place, index, ranks or 1, before[name], contents(place / f"begun-{number}"))
            for index, (number, name) in enumerate(tried)
        }
    finally:
        for number in range(len(cases)):
            unmount(place / f"begun-{number}")


def collect(place: Path, index: int, ranks: int, before: dict[str, object], after: dict[str, object]) -> Outcome:
    """The outcome of one case."""
    reported = [json.loads((place / f"done.{rank}").read_text().splitlines()[index]) for rank in range(ranks)]
    out, err = (
        [(place / "kept" / f"{index}" / f"{name}.{rank}").read_text(errors="replace") for rank in range(ranks)]
        for name in ("out", "err")
    )
    statuses, seconds = ([one[key] for one in reported] for key in ("status", "seconds"))
    return Outcome(statuses, seconds, out, err, difference(before, after))


def check_sentence(case: Case, text: str) -> None:
    """One sentence; where the user's own code raised, its traceback once."""
    assert text.startswith("distsgd: error: "), text
    assert case.reported in text, f"expected {case.reported!r} in: {text}"
    assert text.count("Traceback (most recent call last)") == (1 if case.trace else 0), text
    if not case.trace:
        assert text.endswith("\n"), text
        assert text.count("\n") == 1, text
        assert len(text) < 2200, f"{len(text)} characters"
        assert text[:-1].isprintable(), text


@pytest.mark.parametrize(("ranks", "name"), [*rows(None), *rows(RANKS)])
def test_bad_input(tables: Callable[[int | None], dict[str, Outcome | str]], ranks: int | None, name: str) -> None:
    """One sentence from rank 0, one status, and what was there is as it was; no file keeps a reader busy."""
    case, outcome = CASES[name], tables(ranks)[name]
    if isinstance(outcome, str):
        pytest.skip(outcome)
    assert set(outcome.statuses) == {case.status}, outcome.err[0]
    check_sentence(case, outcome.err[0])
    assert set(outcome.err[1:]) <= {""}
    assert set(outcome.out) == {""}
    assert [path for path in outcome.changed if not path.startswith(case.leaves or "\0")] == []
    assert name not in HOSTILE or max(outcome.seconds) < SECONDS


@pytest.mark.parametrize("name", first_of(SAMPLE, 2))
def test_as_a_user_runs_it(tmp_path: Path, name: str) -> None:
    case, folder = CASES[name], tmp_path / "case"
    make_template(tmp_path)
    if reason := begin(case, folder):
        pytest.skip(reason)
    try:
        before = contents(folder)
        done = module(RANKS, case.command, folder, *shlex.split(case.line), extra=NO_NETWORK)
        assert done.status == case.status, done.text
        assert done.statuses == dict.fromkeys(range(RANKS), case.status)
        check_sentence(case, done.err)
        assert difference(before, contents(folder)) == []
    finally:
        unmount(folder)


def test_the_table_is_large_enough() -> None:
    assert len(CASES) >= 60
    assert len({(case.line, case.reported) for case in CASES.values()}) > 100


def test_what_only_looks_bad_is_gone_on_from(tmp_path: Path) -> None:
    """A summary or records that are damaged don't stop a run whose checkpoints are whole."""
    make_template(tmp_path)
    for number, summary in enumerate(('{"status": "completed"}', "[" * 100_000, None)):
        run = tmp_path / f"run-{number}"
        shutil.copytree(tmp_path / TEMPLATE, run)
        (run / "summary.json").unlink()
        if summary is None:
            os.mkfifo(run / "summary.json")
        else:
            (run / "summary.json").write_text(summary)
        (run / "metrics.jsonl").write_bytes(b'\xff\n[1]\n{"step": "x"}\n{"step": 1, "a": 1}\n' + b"[" * 100_000)
        done = module(None, "train", tmp_path, "--model", "softmax", "--max-steps", 4, "--quiet", "--out", run)
        assert done.status == 0, done.text
        assert json.loads((run / "summary.json").read_text())["steps"] == 4
        assert '{"step": 1, "a": 1}\n' in (run / "metrics.jsonl").read_text()


def test_environment_has_no_mirror() -> None:
    assert not set(NO_NETWORK) & set(environment())
