"""Guards bits and speed through a change: `--record FILE` before it, `--compare FILE` after it.

Exit status 0 where nothing differs and no step is slower, 1 where something is, 2 where nothing can be compared.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.guard import files, runs, times
from benchmarks.guard.commands import COMMANDS, results
from benchmarks.guard.configurations import CONFIGURATIONS, STAND_INS
from benchmarks.guard.files import Recording
from benchmarks.guard.recording import Renames, compare_entries
from benchmarks.processes import Unavailable


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--record", type=Path, metavar="FILE", help="write what was found, beside recordings of other kernels")
    add("--compare", type=Path, metavar="FILE", help="say what differs from the recording in FILE")
    add("--recorded", type=Path, metavar="FILE", help="run nothing: compare this recording")
    add("--only", nargs="+", default=[], metavar="PATTERN", help="configurations whose names hold it, or match it")
    add("--no-times", action="store_true", help="don't time steps")
    add("--no-gpu", action="store_true", help="leave the stand-ins for GPUs out")
    add("--tolerance", type=float, default=2.0, metavar="PERCENT", help="how much slower a step may be (default 2)")
    add(
        "--rename", nargs="+", default=[], metavar="OLD=NEW",
        help="fields, parameters and launches with new names; also =NEW for a new field, OLD= for one that is gone",
    )  # fmt: skip
    add("--list", action="store_true", help="print the configurations' names, and stop")
    chosen = parser.parse_args(arguments)
    if not (chosen.record or chosen.compare or chosen.list):
        parser.error("give --record FILE, --compare FILE or both")
    if chosen.recorded and (chosen.record or not chosen.compare):
        parser.error("--recorded FILE goes with --compare FILE alone")
    try:
        chosen.rename = Renames.parse(chosen.rename)
    except ValueError as error:
        parser.error(str(error))
    return chosen


def select(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that hold a pattern or match it; all where there is none."""
    return [
        name for name in names if not patterns or any(one in name or fnmatch.fnmatchcase(name, one) for one in patterns)
    ]


class Progress:
    """Says on standard error how long each part has taken."""

    def __init__(self) -> None:
        self._what, self._began = "", time.monotonic()

    def __call__(self, what: str) -> None:
        now = time.monotonic()
        if self._what:
            print(f"{now - self._began:6.1f} s  {self._what}", file=sys.stderr, flush=True)
        self._what, self._began = what, now


def measure(chosen: argparse.Namespace, seen: dict[str, Any]) -> tuple[Recording, list[str]]:
    """(the recording, what is wrong whatever it is compared with)."""
    progress = Progress()
    found, wrong = runs.fits(select(CONFIGURATIONS, chosen.only), progress)
    by_command, more = results(select(COMMANDS, chosen.only), progress)
    found |= by_command
    if not chosen.no_gpu:
        if seen["compiler"] == "none":
            print("skipped: the stand-ins for GPUs, which need g++")
        else:
            progress("stand-ins for GPUs")
            found |= runs.stand_ins(select(STAND_INS, chosen.only))
    recording: Recording = {"machine": seen, "configurations": found}
    if not (chosen.no_times or chosen.only):
        recording["steps"] = times.of_steps(times.STEPS, progress)
    progress("")
    return recording, wrong + more


def compare_bits(old: Recording, new: Recording, chosen: argparse.Namespace) -> bool:
    """Prints what differs, configuration by configuration; whether anything does."""
    there, here = old["configurations"], new["configurations"]
    skipped = set(STAND_INS) if chosen.no_gpu or new["machine"]["compiler"] == "none" else set()
    names = [name for name in select(there, chosen.only) if name not in skipped]
    differing = 0
    for name in names:
        reported = compare_entries(there[name], here[name], chosen.rename) if name in here else ["was not run"]
        differing += bool(reported)
        if reported:
            print(f"{name}: {'; '.join(reported)}")
    unknown = [name for name in here if name not in there]
    if unknown:
        print(f"not in the recording: {', '.join(unknown)}")
    print(f"{len(names) - differing} of {len(names)} configurations are equal to the recording")
    return differing > 0 or not names


def compare_steps(old: Recording, new: Recording, chosen: argparse.Namespace) -> bool:
    """Prints how steps' times have changed; whether one is slower than the tolerance. What seems to be is measured
    again, and counts with all rounds."""
    if "steps" not in old or "steps" not in new:
        return False
    if old["machine"]["cpu"] != new["machine"]["cpu"]:
        print("times of steps are not compared: the recording is of another CPU")
        return False
    too_slow = False
    for name, then in old["steps"].items():
        now = new["steps"][name]
        if times.slower(then, now) > chosen.tolerance and not chosen.recorded:
            more = times.of_steps([name], Progress())[name]
            now = new["steps"][name] = {key: [*now[key], *more[key]] for key in now}
        slow = times.slower(then, now) > chosen.tolerance
        print(times.sentence(name, then, now) + (f": SLOWER than the tolerance of {chosen.tolerance:g} %" * slow))
        too_slow |= slow
    return too_slow


def compare(old: Mapping[str, Recording], new: Mapping[str, Recording], chosen: argparse.Namespace) -> int:
    """Prints what differs between recordings of the same probes; the exit status."""
    bad = False
    for probe in set(old) & set(new):
        print(f"compared with {files.describe(old[probe]['machine'])}")
        for line in files.other_metadata(old[probe], new[probe]):
            print(f"not the same machine: {line}")
        bad |= compare_bits(old[probe], new[probe], chosen)
        bad |= compare_steps(old[probe], new[probe], chosen)
    return int(bad)


def check_comparable(path: Path, old: Mapping[str, Recording], machines: Sequence[dict[str, Any]]) -> None:
    """Refuses, where the file has a recording of none of the machines."""
    if any(machine["probe"] in old for machine in machines):
        return
    there = "; ".join(files.describe(recording["machine"]) for recording in old.values())
    here = "; ".join(map(files.describe, machines))
    files.refuse(
        f"nothing can be compared: {path} holds {there or 'nothing'}, and here is {here}; other kernels have other "
        "bits and other times, so record the code from before the change on this machine"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    chosen = parse(arguments)
    if chosen.list:
        print(*select([*CONFIGURATIONS, *COMMANDS, *STAND_INS], chosen.only), sep="\n")
        return 0
    old = files.load(chosen.compare) if chosen.compare else {}
    if chosen.record:
        files.check_place(chosen.record)
    new = files.load(chosen.recorded) if chosen.recorded else {}
    machines = [recording["machine"] for recording in new.values()] if chosen.recorded else [files.this_machine()]
    if chosen.compare:
        check_comparable(chosen.compare, old, machines)
    if chosen.recorded:
        return compare(old, new, chosen)
    recording, wrong = measure(chosen, machines[0])
    for one in wrong:
        print(f"wrong within the recording: {one}")
    status = compare(old, {recording["machine"]["probe"]: recording}, chosen) if chosen.compare else 0
    if chosen.record and not wrong:
        files.store(chosen.record, recording)
        print(f"{len(recording['configurations'])} configurations are recorded in {chosen.record}")
    return max(status, int(bool(wrong)))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unavailable as error:
        print(f"guard: {error}", file=sys.stderr)
        sys.exit(1)
