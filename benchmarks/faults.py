"""Kills processes in the middle of training and looks what becomes of the run: 200 kills, and other faults beside.

Each run is started with distsgd.launch, disturbed once at a moment that its number decides, and has to end with the
bits of the run that nobody disturbed, with nothing left behind. Results are kept after every run, so that a benchmark
that is stopped goes on: python -m benchmarks.faults --seconds 200, again and again.
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import RESULTS, machine, table
from benchmarks.processes import ROOT, environment
from distsgd.launching.cleaning import Traces
from distsgd.processes import stat, with_variable

MOMENTS = ("step", "reduction", "validation", "checkpoint")
KILLS = 200
OTHER_FAULTS = ("SIGSEGV", "exit0", "exit3", "memory", "defect", "SIGSTOP")
OTHERS = 4  # runs a fault, one a moment
LIMIT = 40.0  # seconds that no run takes
_CASE = "DISTSGD_FAULT_CASE"
_CALLBACK = f"{Path(__file__).with_name('children') / 'fault.py'}:Fault"

EPOCHS, STEPS = 6, 13  # steps an epoch
OPTIONS = (
    *("--epochs", str(EPOCHS), "--batch-size", "128", "--hidden", "32", "--dropout", "0.1", "--optimizer", "adam"),
    *("--checkpoint-every", "3", "--patience", "0", "--stall-timeout", "2s", "--quiet"),
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

    @property
    def who(self) -> str:
        """The victim in a word."""
        return "the launcher" if self.victim == "launcher" else "rank 0" if self.rank == 0 else "another rank"


def case(number: int) -> Case:
    """The case of this number; from KILLS on those that aren't SIGKILL."""
    chosen = random.Random(f"fault {number}")
    ranks = chosen.choice((2, 3, 4))
    victim, rank = "rank", chosen.randrange(1, ranks)
    how = "SIGKILL" if number < KILLS else OTHER_FAULTS[(number - KILLS) // OTHERS % len(OTHER_FAULTS)]
    kind = number // len(MOMENTS) % 4 if number < KILLS else number // 2 % 2
    if kind == 0:
        rank = 0
    elif kind == 1 and how == "SIGKILL":
        victim, rank = "launcher", chosen.randrange(ranks)
    moment = MOMENTS[number % len(MOMENTS)]
    times = _TIMES[moment] * (_CHANGES if moment == "checkpoint" and rank == 0 else 1)
    # In other threads nothing can be raised.
    delay = chosen.choice((0.0, chosen.uniform(0, 0.003))) if how.startswith(("SIG", "exit")) else 0.0
    return Case(number, ranks, how, moment, victim, rank, chosen.randint(1, times), delay)


def command(ranks: int, out: Path, *options: str) -> list[str]:
    """A run under distsgd.launch."""
    launch = [sys.executable, "-m", "distsgd.launch", "-n", str(ranks), "--"]
    return [*launch, *OPTIONS, "--out", str(out), *options]


def undisturbed(folder: Path) -> str:
    """The parameters' sha256 of a run that nobody disturbs, alone in one process."""
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
    line = command(case.ranks, folder / "run", "--callback", _CALLBACK)
    began = time.time()
    traces = Traces(tag, temporary)
    status, out, err, hung = _run(line, settings, folder)
    left: list[str] = []
    again = ""
    if case.victim == "launcher" and status == -9:
        left = _wait_for_the_end(tag)
        left += _files(folder, traces)
        status, more, again, hung = _run(line, settings, folder)
        out += more
    problems = [f"left after the kill: {name}" for name in left]
    problems += ["it hung"] if hung else []
    problems += [] if marker.exists() else ["the moment never came"]
    problems += [f"exit status {status}"] if status else []
    problems += [] if sha256(folder / "run") == wanted else ["other bits"]
    problems += [f"left: {name}" for name in _wait_for_the_end(tag) + _files(folder, traces)]
    told = [text for text in err.splitlines() if text.startswith(("distsgd.launch: ", "distsgd: error: "))]
    result = {**asdict(case), "seconds": time.time() - began, "told": told, "problems": problems}
    first = folder / "first-step"
    if first.exists() and case.victim != "launcher":
        when, step = first.read_text().split()
        result |= {"back_after": float(when) - marker.stat().st_mtime, "first_step": int(step)}
    if problems:
        result |= {"out": out[-2000:], "err": (err + again)[-6000:]}
    return result


def _run(line: Sequence[str], settings: Mapping[str, str], folder: Path) -> tuple[int, str, str, bool]:
    """(exit status, standard output, standard error, whether it had to be ended)."""
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
        return process.returncode, out.read(), err.read(), hung


def _wait_for_the_end(tag: str, seconds: float = 5.0) -> list[str]:
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


def _files(folder: Path, traces: Traces) -> list[str]:
    """Files that a case has left, in its temporary folder, in shared memory and in /tmp."""
    memory = (folder / "memory").read_text().split() if (folder / "memory").exists() else []
    files = [path for path in traces.mpi_files() if path.parent != Path("/dev/shm")]
    files += [Path(name) for name in set(memory) if Path(name).exists()]
    return [str(path) for path in (*traces.folder.rglob("*"), *files)]


def summarize(runs: Iterable[Mapping[str, Any]]) -> str:
    """The table fault × moment × outcome."""
    cells: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for run in runs:
        made = Case(**{key: run[key] for key in Case.__dataclass_fields__})
        cells.setdefault((made.how, made.who), {}).setdefault(made.moment, []).append(run)
    rows = []
    for (how, who), moments in sorted(cells.items(), key=lambda item: (item[0][0] != "SIGKILL", item[0])):
        told = [_cell(moments.get(moment, [])) for moment in MOMENTS]
        back = [run["back_after"] for found in moments.values() for run in found if "back_after" in run]
        rows.append((f"{_NAMES.get(how, how)}, {who}", *told, f"{median(back):.2f} s" if back else "by hand"))
    return table(("fault", *(f"in {moment}" for moment in MOMENTS), "next step after"), rows)


_NAMES = {
    "exit0": "os._exit(0)", "exit3": "os._exit(3)", "memory": "MemoryError", "defect": "an exception",
    "SIGSTOP": "SIGSTOP, stall-timeout 2 s",
}  # fmt: skip


def _cell(runs: Sequence[Mapping[str, Any]]) -> str:
    good = sum(not run["problems"] for run in runs)
    return f"{good} of {len(runs)}" if runs else "–"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=KILLS + OTHERS * len(OTHER_FAULTS), help="how many (default: all)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long, to go on later")
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
