"""python -m distsgd.predict RUN … INPUT -o OUT.npz: what a trained model says of new examples."""

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
    from distsgd.nn.task import Task
    from distsgd.parallel import Communicator
    from distsgd.run.trained.stored_model import StoredModel


@dataclass(frozen=True)
class Options:
    """Predict with a trained model: OUT.npz holds `predictions` (n, outputs) and, for classes, `labels` (n,).

    With several runs, `predictions` are the mean of theirs, and `spread` (n, outputs) is the standard deviation.
    """

    run: tuple[str, ...] = option(REQUIRED, "A run's folder, or a checkpoint; or several.", positional=True, path=True)
    input: str = option(REQUIRED, "A .npz file with x, or a .npy file: examples first.", positional=True, path=True)
    out: str = option(REQUIRED, "The .npz file to write. A link there is replaced.", short="-o", path=True)
    x: tuple[str, ...] = option((), "The inputs, as the option --x of training names them. Default: as in training.")
    axis: str = option("0", "The axis of examples, as --axis of training. Default: as in training.")
    model: str | None = option(None, "file.py:function, where the run's model is your own code.", code=True, path=True)


def main() -> int:
    """The command; returns the exit status."""
    return run_command(predict)


def predict(communicator: Communicator, arguments: Sequence[str]) -> int:
    """Predicts each rank's part of the examples; rank 0 writes. Collective."""
    from distsgd.cli.command_line import parse_arguments
    from distsgd.data.named.datasets import open_inputs
    from distsgd.data.sources.base import ReadOptions
    from distsgd.run.data.options import asked_by
    from distsgd.run.data.placement import place
    from distsgd.run.kernels import choose_for
    from distsgd.run.trained.ensemble import check_alike, mean_and_spread

    options = communicator.on_root(lambda: parse_arguments(Options, arguments, "python -m distsgd.predict"))
    choose_for(communicator, options.run[0])
    if communicator.is_root:
        note_kernels(options.run)
    models = load(communicator, options.run, options.model)
    check_alike(options.run, [(one.task, one.signature) for one in models])
    given, one = ReadOptions(x=options.x, axis=options.axis, targets=False), models[0]
    source = communicator.on_root(
        lambda: open_inputs(options.input, asked_by(one.config, one.signature, options.input, given))
    )
    x = place(communicator, source)
    parts = [predicted(communicator, one, x, options.input) for one in models]
    mean, spread = (parts[0], None) if len(parts) == 1 else mean_and_spread(parts)
    gathered = communicator.gather_object((mean, spread))
    communicator.on_root(lambda: write(gathered or [], models[0].task, options.out))
    return 0


def load(communicator: Communicator, runs: Sequence[str], code: str | None) -> list[StoredModel]:
    """The models of these runs; the code is of those that are the user's own. Collective."""
    from distsgd.run.trained.stored_model import read_stored, with_code

    stored = [read_stored(communicator, run) for run in runs]
    some = any(one.is_users for one in stored)
    return [with_code(communicator, one, code if one.is_users or not some else None) for one in stored]


def note_kernels(runs: Sequence[str]) -> None:
    """Prints a warning where runs were computed with other kernels than the first."""
    from pathlib import Path

    from distsgd.run.kernels import recorded_in

    found = {run: name for run in runs if (name := recorded_in(Path(run))) is not None}
    for run, name in found.items():
        if name != found.get(runs[0], name):
            say(
                f"warning: {run} was computed with the kernels {name}, and {runs[0]} with {found[runs[0]]}; its "
                "predictions may differ in their last bits",
                sys.stderr,
            )


def predicted(communicator: Communicator, stored: StoredModel, x: Array, name: str) -> Array:
    """What a model predicts of this rank's part of the examples. Collective."""
    from dataclasses import replace

    import numpy as np

    from distsgd.data.targets import check_finite
    from distsgd.parallel.tree import part
    from distsgd.training.evaluator import CHUNK, predict_all

    communicator.on_root(lambda: check_finite(name, x, np.dtype(stored.config.dtype)))
    examples = stored.signature.examples(x)
    loader = stored.loader(examples)
    if communicator.is_root and (doubt := stored.signature.doubt(x)):
        say(f"warning: {doubt}", sys.stderr)
    # Whole chunks to each rank, so that predictions are the same on any number of them.
    first, last = part(-(-len(x) // CHUNK), communicator.size, communicator.rank)
    mine = replace(loader, examples=examples.subset(np.arange(first * CHUNK, min(last * CHUNK, len(x)))))
    return communicator.everywhere(lambda: predict_all(mine, stored.params, stored.state))


def write(parts: Sequence[tuple[Array, Array | None]], task: Task, out: str) -> None:
    """Writes the ranks' predictions to one file, whole or not at all. Raises RunFolderError where it can't."""
    import io

    import numpy as np

    from distsgd.core.errors import RunFolderError
    from distsgd.core.files import expanded
    from distsgd.core.folders import write_atomically

    whole = [one for one in parts if len(one[0])] or [parts[0]]
    predictions = np.concatenate([mean for mean, _ in whole])
    arrays = {"predictions": predictions}
    if whole[0][1] is not None:
        arrays["spread"] = np.concatenate([spread for _, spread in whole if spread is not None])
    if (labels := task.labels(predictions)) is not None:
        arrays["labels"] = labels
    if task.names:
        arrays["names"] = np.array(task.names)
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
