"""What all benchmarks share: options, metadata about the machine, interleaved repetitions, tables and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.processes import ROOT, Unavailable, child, environment, measure, under_mpirun
from benchmarks.workloads import EXAMPLES, WORKLOADS

RESULTS = ROOT / "benchmarks" / "results"


def options(
    description: str | None,
    arguments: Sequence[str] | None = None,
    workloads: Iterable[str] = WORKLOADS,
    extra: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> argparse.Namespace:
    """The options, the same for all benchmarks, so that `make bench` can pass them to each; `extra` adds one's own."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="repetitions of each measurement, interleaved (default 5)")
    parser.add_argument("--seconds", type=float, help="how long steps are timed in each (default 2)")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds, which measures nothing well")
    parser.add_argument("--out", type=Path, help="folder of NAME-DATE.json (default benchmarks/results; quick: none)")
    parser.add_argument("--workload", nargs="+", choices=list(workloads), help="default: by benchmark")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4], help="of the scaling (default 1 2 4)")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with torch and scikit-learn")
    parser.add_argument("--jax-python", default=sys.executable, help="interpreter with jax")
    parser.add_argument("--data-dir", type=Path, help="folder that holds mnist/, for what trains on it")
    parser.add_argument("--hosts", action="store_true", help="also on two hosts made of namespaces (root, MPICH)")
    extra(parser)
    chosen = parser.parse_args(arguments)
    chosen.rounds = chosen.rounds or (1 if chosen.quick else 5)
    chosen.seconds = chosen.seconds or (0.05 if chosen.quick else 2.0)
    chosen.examples = 4 * 1024 if chosen.quick else EXAMPLES
    if chosen.out is None and not chosen.quick:
        chosen.out = RESULTS
    return chosen


@dataclass(frozen=True)
class Contender:
    """Something to measure: `measure(round)` returns numbers by name, and `metadata` where it has any."""

    name: str
    measure: Callable[[int], Mapping[str, Any]]


def job(name: str, script: str, settings: Mapping[str, Any], ranks: int | None = None) -> Contender:
    """benchmarks/children/SCRIPT.py with this interpreter, on so many ranks (None: without mpirun)."""
    return Contender(name, lambda _: measure(under_mpirun(ranks, child(script, settings))))


@dataclass
class Series:
    """What was measured of one contender, a sample a round; `skipped` says why there is nothing."""

    name: str
    samples: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    skipped: str | None = None

    def values(self, key: str) -> list[float]:
        """One number a round."""
        return [sample[key] for sample in self.samples]

    def median(self, key: str) -> float:
        """The median over the rounds."""
        return median(self.values(key))


def interleave(contenders: Iterable[Contender], rounds: int) -> dict[str, Series]:
    """Measures A B C A B C …, so that a machine that slows down for a while does so for all; by name.

    A contender that is Unavailable once is skipped in the rounds that follow, and in the result.
    """
    contenders = list(contenders)
    found = {contender.name: Series(contender.name) for contender in contenders}
    for number in range(rounds):
        for contender in contenders:
            series = found[contender.name]
            if series.skipped is not None:
                continue
            _progress(f"round {number + 1} of {rounds}: {contender.name}")
            try:
                sample = dict(contender.measure(number))
            except Unavailable as error:
                series.skipped, series.samples = str(error), []
                continue
            series.metadata = sample.pop("metadata", {})
            series.samples.append(sample)
    _progress("")
    return found


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def ratio(a: Series, b: Series, key: str = "examples_per_second") -> float | None:
    """The median over the rounds of a's number over b's of the same round; None where one was skipped."""
    if a.skipped is not None or b.skipped is not None:
        return None
    return median(x / y for x, y in zip(a.values(key), b.values(key), strict=True))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, its first column on the left, the others on the right."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def show(line: Sequence[str]) -> str:
        cells = [cell.rjust(width) if column else cell.ljust(width)
                 for column, (cell, width) in enumerate(zip(line, widths, strict=True))]  # fmt: skip
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths))
    return "\n".join([show(lines[0]), f"|{rule}|", *map(show, lines[1:])])


def speeds(found: Mapping[str, Series]) -> str:
    """A table of examples per second, and of the memory that training takes besides the examples, in one process;
    what was skipped stands below it with its reason."""
    rows = []
    for series in found.values():
        if series.skipped is None:
            values = series.values("examples_per_second")
            grown = [sample["grown_bytes"] / 1e6 for sample in series.samples if "grown_bytes" in sample]
            memory = f"{median(grown):,.0f}" if grown else ""
            rows.append((series.name, f"{median(values):,.0f}", f"{min(values):,.0f}–{max(values):,.0f}", memory))
    return with_skipped(table(("", "examples/s", "least–most", "MB"), rows), found)


def ratios(found: Mapping[str, Series], pairs: Iterable[tuple[str, str]]) -> str:
    """A table of the ratios that could be measured."""
    rows = []
    for over, under in pairs:
        value = ratio(found[over], found[under]) if over in found and under in found else None
        if value is not None:
            rows.append((over, under, f"{value:.2f}"))
    return table(("", "over", "ratio"), rows)


def with_skipped(text: str, found: Mapping[str, Series]) -> str:
    """The table, and a line for each series that is missing from it."""
    skipped = [f"skipped: {series.name} ({series.skipped})" for series in found.values() if series.skipped is not None]
    return "\n".join([text, *([""] if skipped else []), *skipped])


@dataclass
class Report:
    """Prints what was found and writes it down, under the benchmark's name and that of the workloads asked for."""

    name: str
    chosen: argparse.Namespace
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    sections: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.machine = machine()
        of = self.machine
        print(f"# {self.name}, {self.began:%Y-%m-%d}, commit {of['commit']}\n")
        print(f"{of['cpu']}, {of['cores']} cores, {of['blas']}, {of['mpi']}; load {of['load']:.2f} at start; "
              f"medians of {self.chosen.rounds}\n")  # fmt: skip

    def add(self, title: str, found: Mapping[str, Series], *tables: str) -> None:
        """One section: its series go to the file, its tables are printed."""
        print(f"## {title}\n\n" + "\n\n".join(tables) + "\n", flush=True)
        series = [
            {
                "name": one.name,
                "skipped": one.skipped,
                "metadata": one.metadata,
                "medians": {key: one.median(key) for key in (one.samples[0] if one.samples else ())},
                "samples": one.samples,
            }
            for one in found.values()
        ]
        self.sections.append({"title": title, "tables": list(tables), "series": series})

    def write(self) -> None:
        """Leaves NAME-DATE.json in --out; an earlier one of the same day and the same workloads is replaced."""
        folder: Path | None = self.chosen.out
        if folder is None:
            return
        chosen = {
            key: self.chosen.__dict__[key] for key in ("rounds", "seconds", "examples", "quick", "ranks", "workload")
        }
        whole = {
            "benchmark": self.name,
            "began": self.began.isoformat(timespec="seconds"),
            "options": chosen,
            "machine": self.machine,
            "sections": self.sections,
        }
        folder.mkdir(parents=True, exist_ok=True)
        name = "-".join([self.name, *(self.chosen.workload or ()), f"{self.began:%Y-%m-%d}"])
        path = folder / f"{name}.json"
        path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written to {path}")


_PROBE = (
    "from distsgd.core import runtime; runtime.prepare_alone(); import os; print(runtime.blas_description()); "
    "print(os.environ.get('OPENBLAS_CORETYPE', 'its own choice'))"
)


def machine() -> dict[str, Any]:
    """What results depend on: processor, system, commit, versions, BLAS as distsgd sets it up."""
    import distsgd

    blas, kernels = (_output_of([sys.executable, "-c", _PROBE]).splitlines() + ["unknown"] * 2)[:2]
    mpi = _output_of([sys.executable, "-m", "mpi4py", "--mpi-lib-version"])
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "commit": commit(),
        "blas": blas,
        "openblas_coretype": kernels,
        "mpi": " ".join(mpi.splitlines()[0].split()) if mpi else "no MPI library",
        "versions": {
            "distsgd": distsgd.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("numpy", "mpi4py")},
        },
    }


def commit() -> str:
    """The commit of this checkout, with + where what is measured, or measures, differs from it."""
    git = ["git", "-C", str(ROOT)]
    found = _output_of([*git, "rev-parse", "--short=12", "HEAD"]).strip()
    changed = _output_of([*git, "status", "--porcelain", "--", "distsgd", "benchmarks", ":!benchmarks/results"])
    return (found + ("+" if changed else "")) or "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    model = " ".join(f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields)
    return f"{fields.get('model name', platform.machine())} ({model})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _output_of(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
