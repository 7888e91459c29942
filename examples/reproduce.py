"""python -m examples.reproduce NAME…: runs rows of the table of tutorials, or continues them, and rewrites it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples import stand_in
from examples.collect import DONE, run_result
from examples.rows import ROOT, Row, load_rows
from examples.tables import load_results, merge, save_results, write_pages

_OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": "slot:oversubscribe",
}


class Failed(Exception):
    """A run ended with an exit status of its own; what it printed shows why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    rows = load_rows()
    chosen = _options(rows, arguments)
    unknown = [name for name in chosen.names if name not in rows]
    if unknown:
        print(f"there is no row {', '.join(unknown)}; the rows are {', '.join(rows)}", file=sys.stderr)
        return 2
    wanted = [rows[name] for name in chosen.names] or list(rows.values())
    folder = chosen.runs / "short" if chosen.short else chosen.runs
    data_dir = stand_in.write(folder / "data") if chosen.short else chosen.data_dir
    failures = []
    for row in wanted:
        for seed in range(1 if chosen.short else chosen.seeds or row.seeds):
            if chosen.collect:
                continue
            try:
                result = run(row, seed, folder, data_dir, ranks=chosen.ranks, short=chosen.short, more=chosen.more)
            except Failed as error:
                failures.append(f"{row.name}, seed {seed}: {error}")
                continue
            print(f"{row.name} seed {seed}: {result['status']}, {result['figures']}", flush=True)
            if not chosen.short:
                record([row], folder)
    if chosen.collect:
        record(wanted, folder)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _options(rows: dict[str, Row], arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.reproduce", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(rows)}; all without any")
    parser.add_argument("--seeds", type=int, help="how many seeds of each; default by row")
    parser.add_argument("--ranks", type=int, default=1, help="under mpirun where it is more than 1")
    parser.add_argument("--runs", type=Path, default=Path("runs/tutorials"), help="where the runs' folders are")
    parser.add_argument("--data-dir", type=Path, help="folder that holds mnist/; default the user's cache folder")
    parser.add_argument("--short", action="store_true", help="seconds each, without MNIST; no table is written")
    parser.add_argument("--collect", action="store_true", help="run nothing; write down what the folders hold")
    parser.add_argument(
        "--more", nargs=argparse.REMAINDER, default=[], help="options for each run, such as --max-time 1h"
    )
    return parser.parse_args(arguments)


def run(
    row: Row,
    seed: int,
    folder: Path,
    data_dir: Path | None,
    *,
    ranks: int = 1,
    short: bool = False,
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """Runs one seed of a row in folder/NAME-SEED, from where it stopped; what it came to. Raises Failed."""
    out = folder / f"{row.name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    command = row.command(seed, out.resolve(), data_dir and data_dir.resolve(), short=short, more=more)
    if ranks > 1:
        command = [mpirun(), "-n", str(ranks), *command]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**_OPEN_MPI, **os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    result = run_result(row, out, seed)
    stopped_in_order = done.returncode == 75
    if (
        result is None
        or (done.returncode and not stopped_in_order)
        or (not done.returncode and result["status"] not in DONE)
    ):
        raise Failed(f"exit status {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return result


def record(rows: Sequence[Row], folder: Path) -> None:
    """Puts what the folders hold into results.json and the pages."""
    everything, results = load_rows(), load_results()
    for row in rows:
        for out in sorted(folder.glob(f"{row.name}-*")):
            seed = out.name.removeprefix(f"{row.name}-")
            result = run_result(row, out, int(seed)) if seed.isdecimal() else None
            if result is not None:
                merge(results, row.name, result)
    save_results(results, everything)
    write_pages(everything, results)


def mpirun() -> str:
    """The mpirun that fits this interpreter: the one beside it, else the one on PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise Failed("there is no mpirun beside this Python or on PATH; pip install 'distsgd[mpich]'")
    return found


if __name__ == "__main__":
    sys.exit(main())
