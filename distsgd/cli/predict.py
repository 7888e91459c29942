"""python -m distsgd.predict RUN INPUT -o OUT.npz: what a trained model says of new examples."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distsgd.cli.commands import run_command
from distsgd.core.options import REQUIRED, option
from distsgd.core.output import say

if TYPE_CHECKING:
    from distsgd.core.device import Array
    from distsgd.parallel import Communicator
    from distsgd.run.stored_model import StoredModel


@dataclass(frozen=True)
class Options:
    """Predict with a trained model: OUT.npz holds `predictions` (n, outputs) and, for classes, `labels` (n,)."""

    run: str = option(REQUIRED, "The run's folder, or a checkpoint.", positional=True, path=True)
    input: str = option(REQUIRED, "A .npz file with x, or a .npy file: examples first.", positional=True, path=True)
    out: str = option(REQUIRED, "The .npz file to write. A link there is replaced.", short="-o", path=True)
    model: str | None = option(None, "file.py:function, where the run's model is your own code.", code=True, path=True)


def main() -> int:
    """The command; returns the exit status."""
    return run_command(predict)


def predict(communicator: Communicator, arguments: Sequence[str]) -> int:
    """Predicts each rank's part of the examples; rank 0 writes. Collective."""
    from dataclasses import replace

    import numpy as np

    from distsgd.cli.command_line import parse_arguments
    from distsgd.data.sources.checks import check_finite
    from distsgd.data.sources.datasets import open_inputs
    from distsgd.parallel.tree import part
    from distsgd.run.kernels import choose_for
    from distsgd.run.placement import place
    from distsgd.run.stored_model import load_model
    from distsgd.training.evaluator import CHUNK, predict_all

    options = communicator.on_root(lambda: parse_arguments(Options, arguments, "python -m distsgd.predict"))
    choose_for(communicator, options.run)
    stored = load_model(communicator, options.run, options.model)
    x = place(communicator, communicator.on_root(lambda: open_inputs(options.input)))
    communicator.on_root(lambda: check_finite(options.input, x, np.dtype(stored.config.dtype)))
    examples = stored.signature.examples(x)
    loader = stored.loader(examples)
    if communicator.is_root and (doubt := stored.signature.doubt(x)):
        say(f"warning: {doubt}", sys.stderr)
    # Whole chunks to each rank, so that predictions are the same on any number of them.
    first, last = part(-(-len(x) // CHUNK), communicator.size, communicator.rank)
    mine = replace(loader, examples=examples.subset(np.arange(first * CHUNK, min(last * CHUNK, len(x)))))
    predicted = communicator.everywhere(lambda: predict_all(mine, stored.params, stored.state))
    parts = communicator.gather_object(predicted)
    communicator.on_root(lambda: write(parts or [], stored, options.out))
    return 0


def write(parts: Sequence[Array], stored: StoredModel, out: str) -> None:
    """Writes the ranks' predictions to one file, whole or not at all. Raises RunFolderError where it can't."""
    import io

    import numpy as np

    from distsgd.core.errors import RunFolderError
    from distsgd.core.files import expanded
    from distsgd.core.folders import write_atomically

    predictions = np.concatenate([part for part in parts if len(part)] or [parts[0]])
    arrays = {"predictions": predictions}
    if (labels := stored.task.labels(predictions)) is not None:
        arrays["labels"] = labels
    if stored.task.names:
        arrays["names"] = np.array(stored.task.names)
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    path = expanded(out if out.endswith(".npz") else f"{out}.npz")
    try:
        write_atomically(path, file.getvalue())
    except OSError as error:
        raise RunFolderError(
            f"could not write {path}: {error.strerror or error}; choose another place with -o"
        ) from None
    say(f"{len(predictions):,} predictions in {path}")
