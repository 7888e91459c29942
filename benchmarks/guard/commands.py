"""Trainings by the command line, each started in several ways: with other ranks, from a file, in parts."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.guard import adapter, configurations, own, recording
from benchmarks.processes import run, under_mpirun

LIMIT = 120.0
Start = tuple[int | None, dict[str, Any]]
"""Ranks (None: without mpirun), and options besides."""


@dataclass(frozen=True)
class Command:
    """Options of `distsgd.train`, and chains of starts of one run each, whose last one ends it; all end alike.

    toml       the options stand in a file
    predicted  data for which `distsgd.predict` is asked
    """

    options: dict[str, Any]
    chains: tuple[tuple[Start, ...], ...]
    toml: bool = False
    predicted: str = ""


_QUICK = {"epochs": 2, "batch_size": 100, "hidden": (64, 32), "microbatches": 4}
_EVERYTHING = {
    "batch_norm": True, "dropout": 0.2, "l1": 1e-5, "l2": 1e-4, "clip_norm": 1.0, "optimizer": "adamw",
    "schedule": "cosine", "warmup_steps": 5, "top_k": 3, "train_metrics": "full",
}  # fmt: skip
_LONG = {**_QUICK, "epochs": 3, "batch_size": 150, "dropout": 0.1, "optimizer": "adam", "log_every": 4}
_STOPPING = {**_QUICK, "epochs": 12, "patience": 1, "min_delta": 0.05}
_LISTED = "conv 6 3x3, pool 2, relu, batch-norm, dropout 0.3, dense"
_OWN = str(Path(own.__file__))

COMMANDS = {
    "command everything": Command(
        {**_QUICK, **_EVERYTHING}, (((None, {}),), ((2, {"communication": "mpi"}),), ((4, {"threads": 1}),))
    ),
    "command config.toml": Command(
        {**_QUICK, **_EVERYTHING, "seed": 3}, (((None, {}),), ((3, {"communication": "shared"}),)), toml=True
    ),
    "command resumed": Command(
        {**_LONG, "batch_norm": True},
        (
            ((1, {}),),
            ((3, {"max_steps": 7}), (2, {})),
            ((2, {"max_steps": 12}), (None, {"max_steps": 13}), (4, {"communication": "mpi"})),
        ),
    ),
    "command resumed, early stopping": Command(_STOPPING, (((None, {}),), ((4, {"max_steps": 30}), (2, {})))),
    "command early stopping by iterations": Command(
        {**_QUICK, "epochs": 9, "early_stopping": "patience", "patience": 30}, (((2, {}),), ((3, {}),))
    ),
    "command images from a file": Command(
        {"dataset": "images.npz", "model": _LISTED, "epochs": 2, "batch_size": 50, "microbatches": 4},
        (((None, {}),), ((3, {}),)),
        predicted="images.npz",
    ),
    "command regression from a file": Command(
        {**_QUICK, "dataset": "values.npz", "learning_rate": 0.001}, (((2, {}),),), predicted="values.npz"
    ),
    "command own layers and metric": Command(
        {**_QUICK, "model": f"{_OWN}:funnel", "metric": (f"{_OWN}:confidence",), "hidden": (128, 128)}, (((2, {}),),)
    ),
    "command own function": Command(
        {"dataset": "two classes.npz", "model": f"{_OWN}:machine", "epochs": 3, "microbatches": 4}, (((2, {}),),)
    ),
}


def arguments(options: dict[str, Any]) -> list[str]:
    """Options as arguments of the command line."""
    found: list[str] = []
    for name, value in options.items():
        found.append(adapter.option_name(name))
        if value is not True:
            found += map(str, value) if isinstance(value, tuple) else [str(value)]
    return found


def results(names: Sequence[str], progress: Callable[[str], None]) -> tuple[dict[str, Any], list[str]]:
    """(what each command leaves, what is wrong: results that depend on how the run was started)."""
    found: dict[str, Any] = {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name in ("images", "values", "two classes"):
            _write_data(folder / f"{name}.npz", configurations.data(name))
        for name in names:
            progress(name)
            for number, chain in enumerate(COMMANDS[name].chains):
                entry = _run(COMMANDS[name], chain, folder, folder / f"{name}-{number}")
                reported = recording.compare_entries(found.setdefault(name, entry), entry)
                ways = " then ".join("no mpirun" if ranks is None else f"{ranks} ranks" for ranks, _ in chain)
                wrong += [f"{name}: {ways}: {'; '.join(reported)}"] if reported else []
    return found, wrong


def _write_data(path: Path, arrays: tuple[Any, ...]) -> None:
    x, y = arrays
    parts = {"train": slice(0, 150), "validation": slice(150, 175), "test": slice(175, None)}
    np.savez(
        path, **{f"{axis}_{name}": array[part] for name, part in parts.items() for axis, array in (("x", x), ("y", y))}
    )


def _run(command: Command, chain: tuple[Start, ...], folder: Path, out: Path) -> dict[str, Any]:
    """Starts a run until it ends; what its folder holds."""
    own_options = arguments(command.options)
    if command.toml:
        import tomli_w

        named = {key: list(v) if isinstance(v, tuple) else v for key, v in command.options.items()}
        (folder / "run.toml").write_text(tomli_w.dumps(adapter.options(named)))
        own_options = ["--config", "run.toml"]
    for ranks, more in chain:
        line = ["-m", "distsgd.train", *own_options, "--out", str(out), "--quiet", *arguments(more)]
        run(under_mpirun(ranks, [sys.executable, *line]), LIMIT, folder)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    found: dict[str, Any] = {
        "metrics": recording.of_records(map(json.loads, lines)),
        "summary": recording.of_summary(json.loads((out / "summary.json").read_text())),
    }
    if command.predicted:
        x = np.load(folder / command.predicted)["x_test"]
        np.save(folder / "x.npy", x)
        line = ["-m", "distsgd.predict", str(out), "x.npy", "--out", "predicted.npz"]
        run(under_mpirun(chain[-1][0], [sys.executable, *line]), LIMIT, folder)
        with np.load(folder / "predicted.npz") as file:
            found["predictions"] = recording.of_arrays(dict(file))
    return found
