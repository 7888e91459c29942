"""Kills processes in the middle of training and looks what becomes of the run: 200 kills, and other faults beside.

Each run is started with distsgd.launch, disturbed once at a moment that its number decides, and has to end with the
bits of the undisturbed run, with nothing left. The last ones are started with a plain mpirun on a
machine that has too much to do, and are started again by hand. Results are kept after every run, so that a benchmark
that is stopped continues: python -m benchmarks.faults --seconds 200, again and again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import RESULTS, machine, table
from benchmarks.processes import ROOT, environment, mpirun
from distsgd.core.processes import stat, with_variable

MOMENTS = ("step", "reduction", "validation", "checkpoint")
KILLS = 200
OTHER_FAULTS = ("SIGSEGV", "exit0", "exit3", "memory", "defect", "SIGSTOP")
OTHERS = 4  # runs a fault, one a moment
PLAIN, BUSY = 30, 4  # kills under a plain mpirun, and processes that keep the cores busy meanwhile
FIRST_PLAIN = KILLS + OTHERS * len(OTHER_FAULTS)
RUNS = FIRST_PLAIN + PLAIN
LIMIT = 100.0  # seconds that no run takes, on a busy machine too
_CASE = "DISTSGD_FAULT_CASE"
_CALLBACK = f"{Path(__file__).with_name('children') / 'fault.py'}:Fault"

EPOCHS, STEPS = 6, 13  # steps an epoch
OPTIONS = (
    *("--epochs", str(EPOCHS), "--batch-size", "128", "--hidden", "32", "--dropout", "0.1", "--optimizer", "adam"),
    *("--checkpoint-every", "3", "--patience", "0", "--quiet"),
)
# How often each moment comes by in an undisturbed run; rank 0 changes the disk nine times for a checkpoint.
_TIMES = {
    "step": EPOCHS * STEPS,
    "reduction": 2 * EPOCHS * STEPS,
    "validation": EPOCHS,
    "checkpoint": EPOCHS * STEPS // 3,
}
_CHANGES = 9


@dataclass(frozen=True)
class Case:
    """What is done to a run: `how` happens to `victim` (a rank, or the launcher) at a moment on `rank`."""

    number: int
    ranks: int
    how: str
    moment: str
    victim: str
    rank: int
    count: int
    delay: float
    plain: bool = False

    @property
    def who(self) -> str:
        """The victim in a word."""
        return "the launcher" if self.victim == "launcher" else "rank 0" if self.rank == 0 else "another rank"


def case(number: int) -> Case:
    """The case of this number: from KILLS on other faults than SIGKILL, from FIRST_PLAIN on without a launcher."""
    chosen = random.Random(f"fault {number}")
    ranks = chosen.choice((2, 3, 4))
    victim, rank, plain = "rank", chosen.randrange(1, ranks), number >= FIRST_PLAIN
    other = KILLS <= number < FIRST_PLAIN
    how = OTHER_FAULTS[(number - KILLS) // OTHERS] if other else "SIGKILL"
    kind = number // 2 % 2 if other else number // len(MOMENTS) % (2 if plain else 4)
    if kind == 0:
        rank = 0
    elif kind == 1 and how == "SIGKILL" and not plain:
        victim, rank = "launcher", chosen.randrange(ranks)
    moment = MOMENTS[number % len(MOMENTS)]
    times = _TIMES[moment] * (_CHANGES if moment == "checkpoint" and rank == 0 else 1)
    # In other threads nothing can be raised.
    delay = chosen.choice((0.0, chosen.uniform(0, 0.003))) if how.startswith(("SIG", "exit")) else 0.0
    return Case(number, ranks, how, moment, victim, rank, chosen.randint(1, times), delay, plain)


def command(case: Case, out: Path) -> list[str]:
    """A run under distsgd.launch, or under a plain mpirun."""
    launch = [sys.executable, "-m", "distsgd.launch", "-n", str(case.ranks), "--"]
    plain = [mpirun(), "-n", str(case.ranks), sys.executable, "-m", "distsgd.train"]
    stall = ["--stall-timeout", "2s"] if case.how == "SIGSTOP" else []
    return [*(plain if case.plain else launch), *OPTIONS, *stall, "--out", str(out), "--callback", _CALLBACK]


def undisturbed(folder: Path) -> str:
    """The parameters' sha256 of an undisturbed run, alone in one process."""
    line = [sys.executable, "-m", "distsgd.train", *OPTIONS, "--out", str(folder / "undisturbed")]
    subprocess.run(line, env=environment(), cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=LIMIT)
    return sha256(folder / "undisturbed") or ""


def sha256(out: Path) -> str | None:
    """What summary.json says; None where there is none."""
    try:
        found: str = json.loads((out / "summary.json").read_text())["parameters_sha256"]
    except (OSError, KeyError, ValueError):
        return None
    return found


def disturb(case: Case, folder: Path, wanted: str) -> dict[str, Any]:
    """Runs a case in an empty folder; what came of it, with `problems`, which should be empty."""
    marker, temporary = folder / "struck", folder / "tmp"
    temporary.mkdir()
    fault = {**asdict(case), "marker": str(marker)}
    tag = f"{os.getpid()}-{time.time_ns()}"
    settings = {**environment(), "DISTSGD_FAULT": json.dumps(fault), _CASE: tag, "TMPDIR": str(temporary)}
    line = command(case, folder / "run")
    began = time.time()
    with busy(BUSY if case.plain else 0):
        ended = _run(line, settings, folder)
        left = _wait_for_the_end(tag)
    gone = time.time()
    reported = [text for text in ended.err.splitlines() if text.startswith(("distsgd.launch: ", "distsgd: error: "))]
    problems = [f"left: {name}" for name in left + _files(folder, temporary, case)]
    problems += ["it hung"] if ended.hung else []
    again = case.plain or (case.victim == "launcher" and ended.status == -9)
    if again:
        problems += [f"exit status {ended.status} after the kill"] if case.plain and not ended.status else []
        second = _run(line, settings, folder)
        problems += ["it hung when it continued"] if second.hung else []
        problems += [f"left in the end: {name}" for name in _wait_for_the_end(tag) + _files(folder, temporary, case)]
        ended = Ended(second.status, ended.out + second.out, ended.err + second.err, second.hung)
    problems += [] if marker.exists() else ["the moment never came"]
    problems += [f"exit status {ended.status}"] if ended.status else []
    problems += [] if sha256(folder / "run") == wanted else ["other bits"]
    result = {**asdict(case), "seconds": time.time() - began, "told": reported, "problems": problems}
    first = folder / "first-step"
    if marker.exists():
        struck = marker.stat().st_mtime
        if again:
            result["over_after"] = gone - struck
        elif first.exists():
            when, step = first.read_text().split()
            # The launcher says that it continues when it has cleaned up.
            result["over_after"] = (folder / "err").stat().st_mtime - struck
            result |= {"back_after": float(when) - struck, "first_step": int(step)}
    return result | ({"out": ended.out[-2000:], "err": ended.err[-6000:]} if problems else {})


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes compute meanwhile, and leave less of the cores to the others."""
    line = [sys.executable, "-c", "from distsgd.core.processes import die_with_parent as d; d()\nwhile True: pass"]
    running = [subprocess.Popen(line, env=environment()) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Ended:
    """How a command ended. `hung`: it had to be ended."""

    status: int
    out: str
    err: str
    hung: bool


def _run(line: Sequence[str], settings: Mapping[str, str], folder: Path) -> Ended:
    with open(folder / "out", "w+") as out, open(folder / "err", "w+") as err:
        process = subprocess.Popen(line, env=dict(settings), cwd=folder, stdout=out, stderr=err, start_new_session=True)
        hung = False
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            hung = True
            for number in with_variable(_CASE, settings[_CASE]):
                os.kill(number, 9)
            process.wait()
        out.seek(0)
        err.seek(0)
        return Ended(process.returncode, out.read(), err.read(), hung)


def _wait_for_the_end(tag: str, seconds: float = 60.0) -> list[str]:
    """What still runs of a case after so long; it is ended then."""
    until = time.monotonic() + seconds
    while True:
        running = [number for number in with_variable(_CASE, tag) if (found := stat(number)) and not found.ended]
        if not running or time.monotonic() > until:
            break
        time.sleep(0.05)
    for number in running:
        os.kill(number, 9)
    return [f"process {number}" for number in running]


def _files(folder: Path, temporary: Path, case: Case) -> list[str]:
    """Files that a case has left, in its temporary folder, in shared memory and in /tmp.

    Under a plain mpirun its own and the MPI library's are its own business.
    """
    if case.plain:
        return [str(path) for path in temporary.rglob("*") if not path.name.startswith(_MPIS_OWN)]
    made = (folder / "mpis-files").read_text().split() if (folder / "mpis-files").exists() else []
    return [*map(str, temporary.rglob("*")), *(name for name in set(made) if Path(name).exists())]


_MPIS_OWN = ("mpich_shm_", "sm_segment", "hydra_", "ompi.", "prte", "pmix")


def summarize(runs: Iterable[Mapping[str, Any]]) -> str:
    """The table fault × moment × outcome, with what was slowest."""
    cells: dict[tuple[bool, str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for run in runs:
        made = Case(**{key: run[key] for key in Case.__dataclass_fields__})
        who = made.who if made.how == "SIGKILL" else "any rank"
        cells.setdefault((made.plain, made.how, who), {}).setdefault(made.moment, []).append(run)
    rows = []
    for (plain, how, who), moments in sorted(cells.items(), key=lambda item: (item[0][1] != "SIGKILL", item[0])):
        reported = [_cell(moments.get(moment, [])) for moment in MOMENTS]
        found = [run for some in moments.values() for run in some]
        over, back = ([run[key] for run in found if key in run] for key in ("over_after", "back_after"))
        by_hand = "by hand" if over else "–"
        name = f"{_NAMES.get(how, how)}, {who}{', plain mpirun' if plain else ''}"
        rows.append((name, *reported, _times_of(over) if over else "–", _times_of(back) if back else by_hand))
    return table(("fault", *(f"in {moment}" for moment in MOMENTS), "all over after", "next step after"), rows)


def _times_of(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.2f} (≤ {max(seconds):.2f}) s"


_NAMES = {
    "exit0": "os._exit(0)", "exit3": "os._exit(3)", "memory": "MemoryError", "defect": "an exception",
    "SIGSTOP": "SIGSTOP, stall-timeout 2 s",
}  # fmt: skip


def _cell(runs: Sequence[Mapping[str, Any]]) -> str:
    good = sum(not run["problems"] for run in runs)
    return f"{good} of {len(runs)}" if runs else "–"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=RUNS, help="how many (default: all)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long, to continue later")
    parser.add_argument("--out", type=Path, help="results (default benchmarks/results/faults-DATE.json)")
    chosen = parser.parse_args()
    path: Path = chosen.out or RESULTS / f"faults-{datetime.now(UTC):%Y-%m-%d}.json"
    kept = json.loads(path.read_text()) if path.exists() else {"benchmark": "faults", "machine": machine(), "runs": []}
    done = {run["number"] for run in kept["runs"]}
    until = time.monotonic() + chosen.seconds
    with tempfile.TemporaryDirectory() as scratch:
        wanted = kept.setdefault("parameters_sha256", undisturbed(Path(scratch)))
        for number in range(chosen.runs):
            if number in done or time.monotonic() > until:
                continue
            folder = Path(scratch) / str(number)
            folder.mkdir()
            found = disturb(case(number), folder, wanted)
            kept["runs"].append(found)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept, indent=1) + "\n")
            print(f"{number}: {case(number)}: {'; '.join(found['problems']) or 'well'}", file=sys.stderr, flush=True)
    bad = [run["number"] for run in kept["runs"] if run["problems"]]
    print(summarize(kept["runs"]))
    print(f"\n{len(kept['runs'])} of {chosen.runs} runs made, {len(bad)} with problems{f': {bad}' if bad else ''}")
    return 1 if bad else 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
