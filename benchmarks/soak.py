"""Trains for half an hour while its processes are killed, stopped and asked to stop at random, and looks what grows.

Every few seconds something happens to the run. It has to continue, or to do so with the same command where the launcher
was ended; memory, descriptors and files are counted all the time; and in the end its parameters and records have to be
those of an undisturbed run. It continues where it was stopped: python -m benchmarks.soak --seconds 200, again
and again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, machine, table
from benchmarks.faults import sha256
from benchmarks.processes import ROOT, environment, mpirun
from distsgd.core.processes import mapped_files, open_files, stat, with_variable
from distsgd.launching.folder import WatchedFolder

RANKS = 3
MINUTES = 30.0
EVENTS = {"kill a rank": 6, "stop a rank": 3, "suspend all": 2, "SIGTERM": 1, "kill the launcher": 1}
"""What happens, and how often in so many. A stopped rank is noticed by the watchdog; SIGTERM goes to the launcher."""
PAUSES = (3.0, 25.0)  # seconds between two events
SUSPENDED = 4.0
LIMIT = 40.0  # seconds in which a run has gone on
_SAMPLE = 1.0
_SETTLED = 4.0  # seconds after its start from which a process has all that it needs
_PACE = "0.004"  # seconds a step
_TAG = "DISTSGD_SOAK"
_CALLBACK = f"{Path(__file__).with_name('children') / 'pace.py'}:Pace"
OPTIONS = (
    *("--epochs", "1000000", "--batch-size", "16", "--hidden", "64", "--dropout", "0.1", "--optimizer", "adam"),
    *("--checkpoint-every", "200", "--validate-every", "500", "--patience", "0", "--stall-timeout", "2s", "--quiet"),
)
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


_ROWS, _FEATURES = 120_000, 200
_READERS = ("--readers=2",)
_STREAMED = ("--shuffle-buffer", "20MB", *_READERS, "--standardize")
"""Of 96 MB of examples, five times the buffer."""


def options_of(folder: Path, kept: Mapping[str, Any]) -> list[str]:
    """The options of the run; of a streamed one its data set is made where it isn't there."""
    if not kept.get("streamed"):
        return [*OPTIONS]
    data = folder / "data"
    if not (data / "y.npy").exists():
        data.mkdir(parents=True, exist_ok=True)
        draws = np.random.default_rng(0)
        x = np.lib.format.open_memmap(data / "x.npy", "w+", np.float32, (_ROWS, _FEATURES))
        for start in range(0, _ROWS, 10_000):
            x[start : start + 10_000] = draws.standard_normal((10_000, _FEATURES), np.float32)
        x.flush()
        np.save(data / "y.npy", x[:, :10].argmax(axis=1))
    return ["--dataset", str(data), *_STREAMED, *OPTIONS]


@dataclass
class Life:
    """A process from _SETTLED seconds after its start to its end: KiB of its own memory, descriptors and threads."""

    kind: str
    began: float
    first: tuple[int, int, int] | None = None
    last: tuple[int, int, int] = (0, 0, 0)
    most: tuple[int, int, int] = (0, 0, 0)
    seconds: float = 0.0

    def see(self, found: tuple[int, int, int], now: float) -> None:
        """One sample."""
        self.seconds = now - self.began
        if self.first is None and self.seconds >= _SETTLED:
            self.first = found
        self.last = found
        self.most = tuple(map(max, self.most, found))  # type: ignore[assignment]


@dataclass
class Soak:
    """One part of the soak: a run that continues in `folder`, and what was seen of it."""

    folder: Path
    kept: dict[str, Any]
    lives: dict[tuple[int, int], Life] = field(default_factory=dict)
    mpis_files: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.tag = f"{os.getpid()}-{time.time_ns()}"
        self.run = WatchedFolder(self.folder / "run")
        self.chosen = random.Random(f"soak {len(self.kept['events'])}")
        self.began, self.before = time.monotonic(), float(self.kept["seconds"])
        self.sampled = 0.0
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """The launcher, with the same command as ever."""
        settings = {**environment(), _TAG: self.tag, "TMPDIR": str(self.temporary), "DISTSGD_PACE": _PACE}
        own = ["-n", str(RANKS), "--max-restarts", "1000000", "--"]
        given = options_of(self.folder, self.kept)
        line = [sys.executable, "-m", "distsgd.launch", *own, *given, "--callback", _CALLBACK]
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                [*line, "--out", str(self.run.path)],
                env=settings, cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        """So long the soak has lasted, over all its parts."""
        return self.before + time.monotonic() - self.began

    def continue_run(self, until: float) -> None:
        """Disturbs the run until the soak has lasted so long, and stops it."""
        try:
            self.wait_for_progress("start")
            while self.seconds < until:
                pause = self.chosen.uniform(*PAUSES)
                event = self.chosen.choices(list(EVENTS), list(EVENTS.values()))[0]
                self.look_for(min(pause, max(until - self.seconds, 0)))
                if self.seconds < until:
                    self.happens(event)
            self.stop()
        finally:
            self.process.kill()  # where it is still there
            self.process.wait()
            self.kept["seconds"] = self.seconds
            self.kept["lives"] += [asdict(life) for life in self.lives.values() if life.first is not None]

    def happens(self, event: str) -> None:
        """Does it, and waits until the run has come further."""
        began, step = time.monotonic(), self.run.step()
        ranks = self.ranks()
        if event == "kill a rank":
            os.kill(self.chosen.choice(ranks), signal.SIGKILL)
        elif event == "stop a rank":
            os.kill(self.chosen.choice(ranks), signal.SIGSTOP)
        elif event == "suspend all":
            self.suspend()
        elif event == "SIGTERM":
            self.stop()
            self.process = self.start()
        else:
            self.process.kill()
            self.process.wait()
            self.wait_for_the_end(event)
            self.process = self.start()
        self.wait_for_progress(event)
        self.kept["events"].append(
            {"event": event, "at": round(self.seconds, 1), "step": step, "on_after": round(time.monotonic() - began, 2)}
        )

    def suspend(self) -> None:
        """As batch systems do: all processes stand still for a while."""
        processes = self.processes()
        for number in processes:
            _signal(number, signal.SIGSTOP)
        time.sleep(SUSPENDED)
        for number in processes:
            _signal(number, signal.SIGCONT)

    def stop(self) -> None:
        """Asks the launcher to stop, which has to leave a checkpoint, status 75, and nothing else."""
        self.process.terminate()
        try:
            status = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            status = None
        if status != 75:
            self.problem(f"exit status {status} after SIGTERM")
        self.wait_for_the_end("SIGTERM")

    def wait_for_progress(self, event: str) -> None:
        """Until there is a newer checkpoint than now."""
        step, until = self.run.step(), time.monotonic() + LIMIT
        while self.run.step() == step:
            if self.process.poll() is not None or time.monotonic() > until:
                self.problem(f"the run did not continue after: {event} (launcher: {self.process.poll()})")
                raise SystemExit(f"the run did not continue after: {event}; see {self.folder / 'log'}")
            self.look_for(0.2)

    def wait_for_the_end(self, event: str) -> None:
        """Until nothing of the launcher's is left, which has to be soon."""
        until = time.monotonic() + 5.0
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.02)
        for number in left:
            self.problem(f"left after {event}: process {number}")
            _signal(number, signal.SIGKILL)
        for path in (*self.temporary.rglob("*"), *(name for name in self.mpis_files if Path(name).exists())):
            self.problem(f"left after {event}: {path}")

    def problem(self, what: str) -> None:
        """Something that should not be."""
        print(what, file=sys.stderr, flush=True)
        self.kept["problems"].append({"at": round(self.seconds, 1), "what": what})

    def processes(self) -> list[int]:
        """All that the launcher has started, and itself."""
        found = with_variable(_TAG, self.tag)
        return sorted(number for number in found if (reported := stat(number)) is not None and not reported.ended)

    def ranks(self) -> list[int]:
        """The ranks' processes."""
        return [number for number in self.processes() if _kind(number, self.process.pid) in ("rank 0", "another rank")]

    def look_for(self, seconds: float) -> None:
        """Lets the run train, and counts what there is every second."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            if now - self.sampled >= _SAMPLE:
                self.sampled = now
                self.sample()
            time.sleep(min(0.1, max(until - time.monotonic(), 0)))

    def sample(self) -> None:
        """Counts."""
        for number in self.processes():
            reported, kind = stat(number), _kind(number, self.process.pid)
            found = _counts(number)
            if reported is None or kind is None or found is None:
                continue
            life = self.lives.setdefault((number, reported.started), Life(kind, self.seconds))
            life.see(found, self.seconds)
        named = mapped_files("/dev/shm", self.ranks())
        named |= {name for name in open_files("/tmp", self.processes()) if "hydra" in name}
        self.mpis_files |= {name for name in named if "deleted" not in name}
        path = self.run.path
        files = [len(list(folder.iterdir())) for folder in (path, path / "checkpoints") if folder.exists()]
        counted, minute = {"run": sum(files), "temporary": len(list(self.temporary.rglob("*")))}, int(self.seconds / 60)
        if not self.kept["files"] or self.kept["files"][-1]["minute"] != minute:
            self.kept["files"].append({"minute": minute, **counted})
        most = self.kept["files"][-1]
        most |= {key: max(most[key], value) for key, value in counted.items()}


def _signal(number: int, what: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(number, what)


def _kind(number: int, launcher: int) -> str | None:
    """launcher, rank 0 or another rank; None for mpirun's processes and shells."""
    if number == launcher:
        return "launcher"
    try:
        line = Path(f"/proc/{number}/cmdline").read_bytes()
        settings = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    if b"distsgd.train" not in line:
        return None
    first = b"PMI_RANK=0" in settings or b"OMPI_COMM_WORLD_RANK=0" in settings
    return "rank 0" if first else "another rank"


def _counts(number: int) -> tuple[int, int, int] | None:
    """(KiB that no other process shares, descriptors, threads)."""
    try:
        resident, shared = map(int, Path(f"/proc/{number}/statm").read_text().split()[1:3])
        return (
            (resident - shared) * _PAGE_KIB,
            len(os.listdir(f"/proc/{number}/fd")),
            len(os.listdir(f"/proc/{number}/task")),
        )
    except (OSError, ValueError):
        return None


def compare(folder: Path, kept: dict[str, Any]) -> None:
    """Ends the run a little later, and makes it again undisturbed; counts that one's memory, too."""
    last = WatchedFolder(folder / "run").step() or 0
    more = ("--max-steps", str(last + 100))
    line = [mpirun(), "-n", "2", sys.executable, "-m", "distsgd.train", *options_of(folder, kept), *more]
    subprocess.run([*line, "--out", str(folder / "run")], env=environment(), cwd=folder, check=True)
    if kept.get("streamed"):
        line = [word for word in line if word not in _READERS] + ["--no-stream"]
    shutil.rmtree(folder / "again", ignore_errors=True)
    process = subprocess.Popen(
        [*line, "--out", str(folder / "again")], env={**environment(), _TAG: "again"}, cwd=folder
    )
    began, lives = time.monotonic(), dict[int, Life]()
    while process.poll() is None:
        for number in with_variable(_TAG, "again"):
            kind, found = _kind(number, process.pid), _counts(number)
            if kind not in (None, "launcher") and found is not None:
                lives.setdefault(number, Life(f"{kind}, undisturbed", 0.0)).see(found, time.monotonic() - began)
        time.sleep(_SAMPLE)
    kept["lives"] += [asdict(life) for life in lives.values() if life.first is not None]
    kept["steps"] = last + 100
    kept["undisturbed_seconds"] = round(time.monotonic() - began, 1)
    kept["same_bits"] = sha256(folder / "run") == sha256(folder / "again") is not None
    kept["same_records"] = _records(folder / "run") == _records(folder / "again")


def _records(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what may differ between equal runs."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "run"} for line in lines]


def summarize(kept: Mapping[str, Any]) -> str:
    """Tables of the events and of what was counted."""
    rows = []
    for event in EVENTS:
        took = [one["on_after"] for one in kept["events"] if one["event"] == event]
        if took:
            rows.append((event, str(len(took)), f"{median(took):.1f} (≤ {max(took):.1f}) s"))
    events = table(("event", "times", "next checkpoint after"), rows)
    rows = []
    for kind in dict.fromkeys(life["kind"] for life in kept["lives"]):
        lives = [life for life in kept["lives"] if life["kind"] == kind]
        third = -(-len(lives) // 3)
        early, late = _levels(lives[:third]), _levels(lives[-third:])
        longest = max(lives, key=lambda life: life["seconds"])
        grown = [last - first for first, last in zip(longest["first"], longest["last"], strict=True)]
        rows.append((
            kind, str(len(lives)), f"{early[0] / 1024:.1f} → {late[0] / 1024:.1f} MiB", f"{early[1]} → {late[1]}",
            f"{longest['seconds']:.0f} s: {grown[0] / 1024:+.2f} MiB, {grown[1]:+d}",
        ))  # fmt: skip
    counted = table(
        ("process", "lives", "memory, first → last third", "descriptors", "the longest life, from 4 s on"), rows
    )
    files = kept["files"]
    inside = [one["run"] for one in files]
    reported = (
        f"files in the run folder: {inside[0]} at first, {max(inside)} at most, {inside[-1]} at last" if files else ""
    )
    return f"{events}\n\n{counted}\n\n{reported}"


def _levels(lives: Sequence[Mapping[str, Any]]) -> list[int]:
    return [int(median(life["last"][index] for life in lives)) for index in range(3)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="how long in all (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long, to continue later")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "soak", help="keeps the run (default: runs/soak)"
    )
    parser.add_argument("--out", type=Path, help="results (default benchmarks/results/soak-DATE.json)")
    parser.add_argument(
        "--streamed", action="store_true", help="on a file that is read while training; compared with it in memory"
    )
    chosen = parser.parse_args()
    name = "soak-streamed" if chosen.streamed else "soak"
    path: Path = chosen.out or RESULTS / f"{name}-{datetime.now(UTC):%Y-%m-%d}.json"
    empty = {"streamed": chosen.streamed, "seconds": 0.0, "events": [], "problems": [], "lives": [], "files": []}
    kept = json.loads(path.read_text()) if path.exists() else {"benchmark": "soak", "machine": machine(), **empty}
    if not kept["seconds"]:
        shutil.rmtree(chosen.folder, ignore_errors=True)
    folder = chosen.folder.resolve()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was seen is kept, and nothing left running
    try:
        if kept["seconds"] < 60 * chosen.minutes:
            Soak(folder, kept).continue_run(min(60 * chosen.minutes, kept["seconds"] + chosen.seconds))
        if kept["seconds"] >= 60 * chosen.minutes and "same_bits" not in kept:
            compare(folder, kept)
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=1) + "\n")
    print(summarize(kept))
    print(f"\n{kept['seconds'] / 60:.1f} of {chosen.minutes:g} minutes, {len(kept['problems'])} problems")
    if "same_bits" in kept:
        print(f"{kept['steps']} steps; the same bits: {kept['same_bits']}; the same records: {kept['same_records']}")
    return 1 if kept["problems"] or not kept.get("same_bits", True) or not kept.get("same_records", True) else 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
