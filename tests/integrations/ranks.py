"""Trains small models of a framework, a line of JSON for each: python ranks.py jax|torch FOLDER WHAT [NAME …].

whole      each at once, without a folder
stopped    each is stopped after step 6, and continued
killed     the first is killed after step 6, with every rank
continued  each continues what is in the folder
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import distsgd

MODELS = import_module(f"tests.integrations.{sys.argv[1]}.models")
OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 40, "microbatches": 4, "optimizer": "adam", "lr": 0.01}


class At(distsgd.Callback):
    """Does something after step 6 of a run."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.view: Any = None

    def on_start(self, run: Any) -> None:
        self.view = run

    def on_step(self, step: int, loss: float, examples: int) -> None:
        if step == 6 and self.what == "stop":
            self.view.stop()
        elif step == 6 and self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


def digest(model: Any) -> str:
    """Of all that the model holds at the end, on this rank."""
    found = hashlib.sha256()
    for array in MODELS.held(model):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def train(name: str, folder: Path | None, what: str = "") -> dict[str, Any]:
    model, x, y = MODELS.build(name)
    cut = 120
    parts = [({key: one[part] for key, one in x.items()} if isinstance(x, dict) else x[part], y[part])
             for part in (slice(cut), slice(cut, None))]  # fmt: skip
    more: dict[str, Any] = (
        {} if folder is None else {"out": str(folder / name.replace(" ", "-")), "checkpoint_every": "4steps"}
    )
    result = distsgd.fit(model, parts[0], validation=parts[1], callbacks=[At(what)], **OPTIONS, **more)
    summary = result.summary
    return {
        "name": name,
        "status": summary["status"],
        "steps": summary["steps"],
        "sha256": summary["parameters_sha256"],
        "held": digest(model),
        "validation_loss": summary["validation_loss"],
        "same_bits": summary["same_bits"],
    }


def main() -> None:
    folder, what, names = Path(sys.argv[2]), sys.argv[3], sys.argv[4:] or list(MODELS.MODELS)
    for name in names:
        if what == "stopped":
            assert train(name, folder, "stop")["status"] == "stopped"
        found = train(name, None if what == "whole" else folder, "kill" if what == "killed" else "")
        held = {one["held"] for one in everyone(found)}
        assert len(held) == 1, "ranks hold other parameters in the end"
        if distsgd.is_root():
            print(json.dumps(found), flush=True)


def everyone(found: dict[str, Any]) -> list[dict[str, Any]]:
    if distsgd.size() == 1:
        return [found]
    from mpi4py import MPI

    return MPI.COMM_WORLD.allgather(found)  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
