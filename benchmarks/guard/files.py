"""The files that hold recordings, one for each kind of machine, and the machine that this is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import common
from benchmarks.guard import adapter
from benchmarks.processes import environment

FORMAT = 1
Recording = dict[str, Any]
"""`machine`, `configurations` and, if steps were timed, `steps`."""

_SEEN_IN_A_CHILD = (
    "from benchmarks.guard import adapter; adapter.prepare(); import json; "
    "print(json.dumps({'probe': adapter.cpu_probe(), 'kernels': adapter.blas_description()}))"
)
METADATA = ("kernels", "numpy", "python", "mpi", "compiler", "cpu")
"""What a difference may come from besides the code."""


def this_machine() -> dict[str, Any]:
    """What bits and times depend on, as a child sees it."""
    command = [sys.executable, "-c", _SEEN_IN_A_CHILD]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    seen = common.machine()
    return {
        **json.loads(done.stdout),
        "numpy": seen["versions"]["numpy"],
        "python": seen["versions"]["python"],
        "mpi": seen["mpi"],
        "compiler": _compiler(),
        "cpu": seen["cpu"],
        "cores": seen["cores"],
        "load": seen["load"],
        "commit": seen["commit"],
        "environment": "children get no OPENBLAS_CORETYPE, nor anything else that is set for BLAS or by a launcher"
        + (f"; OPENBLAS_CORETYPE was {os.environ['OPENBLAS_CORETYPE']}" if "OPENBLAS_CORETYPE" in os.environ else ""),
    }


def _compiler() -> str:
    """What compiles kernels.cu for the stand-ins."""
    path = adapter.compiler()
    if path is None:
        return "none"
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or ["unknown"])[0]


def refuse(sentence: str) -> NoReturn:
    """Says why nothing is done, and ends with status 2."""
    print(f"guard: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def load(path: Path) -> dict[str, Recording]:
    """The recordings in a file, by probe. Raises SystemExit where it is something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        recordings: dict[str, Recording] = document["recordings"]
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, expected {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        refuse(f"{path} holds no recordings: {error}; make a file of them with --record")
    return recordings


def check_place(path: Path) -> None:
    """Refuses a file that can't be written, or holds something else than recordings, before anything is measured."""
    if path.exists():
        load(path)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        refuse(f"{path} can't be written; give --record a file in a folder that there is")


def store(path: Path, recording: Recording) -> None:
    """Puts a recording into a file, in the place of one of the same probe."""
    recordings = load(path) if path.exists() else {}
    recordings[recording["machine"]["probe"]] = recording
    document = {"format": FORMAT, "recordings": recordings}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def describe(machine: Mapping[str, Any]) -> str:
    """A machine in a few words."""
    kernels, numpy, commit = (machine[name] for name in ("kernels", "numpy", "commit"))
    return f"probe {machine['probe']} ({kernels}, NumPy {numpy}, commit {commit})"


def other_metadata(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What is another thing than when the recording was made."""
    then, now = old["machine"], new["machine"]
    return [f"{name}: {then[name]}, now {now[name]}" for name in METADATA if then[name] != now[name]]
