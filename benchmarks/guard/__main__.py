"""Guards bits and speed through a change: `--record FILE` before it, `--compare FILE` after it.

Exit status 0 where nothing differs, 1 where something does, 2 where nothing can be compared.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import machine
from benchmarks.guard import runs
from benchmarks.guard.configurations import CONFIGURATIONS
from benchmarks.guard.recording import compare_tables
from benchmarks.processes import Unavailable, environment

FORMAT = 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="writes the recording of this machine's kernels into FILE, beside those of others",
    )
    parser.add_argument("--compare", type=Path, metavar="FILE", help="says what differs from the recording in FILE")
    parser.add_argument("--recorded", type=Path, metavar="FILE", help="compares this recording, and runs nothing")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="configurations whose name holds this, or matches it (*)",
    )
    parser.add_argument("--no-times", action="store_true", help="doesn't time steps")
    parser.add_argument("--no-gpu", action="store_true", help="leaves out the stand-ins for GPUs")
    parser.add_argument(
        "--rename",
        nargs="+",
        default=[],
        metavar="OLD=NEW",
        help="names of fields, parameters and launches that have changed; =NEW is a new one, OLD= one that is gone",
    )
    parser.add_argument(
        "--tolerance", type=float, default=2.0, metavar="PERCENT", help="how much slower a step may be (default 2)"
    )
    return parser.parse_args(arguments)


def chosen(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that hold a pattern or match it; all where there is none."""
    if not patterns:
        return list(names)
    return [name for name in names if any(p in name or fnmatch.fnmatchcase(name, p) for p in patterns)]


_KERNELS = (
    "from benchmarks.guard import adapter; adapter.prepare(); import json; "
    "print(json.dumps({'probe': adapter.cpu_probe(), 'kernels': adapter.blas_description()}))"
)


def this_machine() -> dict[str, Any]:
    """What bits and times depend on, seen in a child, without OPENBLAS_CORETYPE and its like in the environment."""
    done = subprocess.run(
        [sys.executable, "-c", _KERNELS], env=environment(), capture_output=True, text=True, check=True
    )
    seen = machine()
    return {
        **json.loads(done.stdout),
        "numpy": seen["versions"]["numpy"],
        "python": seen["versions"]["python"],
        "mpi": seen["mpi"],
        "cpu": seen["cpu"],
        "cores": seen["cores"],
        "commit": seen["commit"],
        "unset for children": "OPENBLAS_CORETYPE and all other settings of BLAS and of a launcher",
    }


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """(the recording, what is wrong in itself)."""
    progress = _Progress()
    names = chosen(list(CONFIGURATIONS), options.only)
    fits, wrong = runs.fits(names, progress)
    progress("")
    return {"machine": this_machine(), "configurations": fits}, wrong


class _Progress:
    """Says what runs, and how long what ran before has taken."""

    def __init__(self) -> None:
        self._what, self._began = "", time.monotonic()

    def __call__(self, what: str) -> None:
        now = time.monotonic()
        if self._what:
            print(f"  {self._what}: {now - self._began:.1f} s", file=sys.stderr, flush=True)
        self._what, self._began = what, now


def load(path: Path) -> dict[str, Any]:
    """The recordings in a file, by probe."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        recordings: dict[str, Any] = document["recordings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"guard: {path} is no recording: {error}") from None
    return recordings


def store(path: Path, recording: Mapping[str, Any]) -> None:
    """Puts a recording into a file, in place of the one of the same probe."""
    recordings = load(path) if path.exists() else {}
    recordings[recording["machine"]["probe"]] = recording
    document = {"format": FORMAT, "recordings": recordings}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def refuse(sentence: str) -> None:
    print(f"guard: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def compare(path: Path, new: Mapping[str, Any], renames: Mapping[str, str], only: Sequence[str]) -> int:
    """Prints what differs from the file's recording; how many configurations do."""
    recordings, machine = load(path), new["machine"]
    old = recordings.get(machine["probe"])
    if old is None:
        there = "; ".join(
            f"{r['machine']['probe']} ({r['machine']['kernels']}, NumPy {r['machine']['numpy']})"
            for r in recordings.values()
        )
        refuse(
            f"{path} has no recording of this machine's probe {machine['probe']} ({machine['kernels']}, NumPy {machine['numpy']}), only of {there}; other kernels give other bits and times, so record the code before the change on this machine"
        )
    table = {name: old["configurations"][name] for name in chosen(list(old["configurations"]), only)}
    found = compare_tables(table, new["configurations"], renames)
    for name, told in found.items():
        print(f"{name}: {'; '.join(told)}")
    added = [name for name in new["configurations"] if name not in old["configurations"]]
    if added:
        print(f"not in {path}: {', '.join(added)}")
    print(f"{len(table) - len(found)} of {len(table)} configurations have equal bits")
    return len(found)


def main() -> int:
    options = parse()
    if not (options.record or options.compare):
        refuse("give --record FILE, --compare FILE or both")
    renames = dict(pair.split("=", 1) for pair in options.rename)
    if options.compare:
        load(options.compare)
    began = time.monotonic()
    recording, wrong = measure(options)
    for one in wrong:
        print(f"wrong: {one}")
    print(f"{len(recording['configurations'])} configurations in {time.monotonic() - began:.0f} s", file=sys.stderr)
    if wrong:
        return 1
    differing = compare(options.compare, recording, renames, options.only) if options.compare else 0
    if options.record:
        store(options.record, recording)
    return int(differing > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unavailable as error:
        print(f"guard: {error}", file=sys.stderr)
        sys.exit(1)
