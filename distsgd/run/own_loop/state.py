"""How the ranks of a DataParallel meet before each operation, and what it saves."""

from __future__ import annotations

import sys
from enum import IntEnum
from pathlib import Path

import numpy as np

from distsgd.core.checkpoint import Checkpoint
from distsgd.core.checkpoint_folder import CheckpointFolder
from distsgd.core.errors import CheckpointError, ConfigurationError, DistsgdError, RunFolderError, raise_first
from distsgd.core.folders import Folder
from distsgd.core.output import say
from distsgd.parallel import Communicator
from distsgd.parallel.communicator import rank_names
from distsgd.training.checkpoint_store import Checkpoints, take
from distsgd.training.run_state import Metadata, RunState


class Operation(IntEnum):
    """What a rank is about to do with the others."""

    BATCHES = 1
    STEP = 2
    MEAN = 3
    STATE_DICT = 4
    LOAD = 5
    SAVE = 6
    RESUME = 7

    @property
    def title(self) -> str:
        """Its name in a sentence."""
        return "load_state_dict" if self is Operation.LOAD else self.name.lower()


def meet(
    communicator: Communicator, operation: Operation, step: int, number: int, problem: DistsgdError | None
) -> None:
    """Raises, on all ranks, one rank's problem, or that they make different calls. Collective, in one small message.

    step     the batch that the operation is about, from 0
    number   of the object, as several may use the same ranks
    """
    if communicator.size == 1:
        if problem is not None:
            raise problem
        return
    calls = np.zeros((communicator.size, 4), np.int64)
    calls[communicator.rank] = operation, step, number, problem is not None
    communicator.transport.allgather_slices(calls.reshape(-1), [4] * communicator.size)
    if (calls[:, :3] != calls[0, :3]).any():
        holders: dict[tuple[int, int, int], list[int]] = {}
        for rank, (one, at, of) in enumerate(calls[:, :3].tolist()):
            holders.setdefault((one, at, of), []).append(rank)
        objects = sorted({of for _, _, of in holders})
        texts = [
            f"{rank_names(ranks)} {Operation(one).title} at batch {at + 1}"
            + (f" of DataParallel number {objects.index(of) + 1}" if len(objects) > 1 else "")
            for (one, at, of), ranks in holders.items()
        ]
        raise ConfigurationError(
            f"ranks make different calls: {', '.join(texts)}; every rank runs the same loop, and makes or skips the "
            "same steps"
        )
    if calls[:, 3].any():
        raise_first(communicator.allgather_object(problem), problem, communicator.rank)


def whole_run(checkpoints: Checkpoints, progress: RunState) -> Checkpoint | None:
    """A copy of all that training continues from, on rank 0; None elsewhere. Collective."""
    step, communicator = checkpoints.step, checkpoints.communicator
    is_finite, _ = checkpoints.prepare(final=True)
    if not is_finite:
        raise step.wrong_update(progress.step).error()
    slots = step.reduction.gather_slots()
    found: list[Checkpoint] = []

    def capture() -> None:
        assert slots is not None, "rank 0 has gathered them"
        found.append(take(step, progress, None, slots)[0])

    communicator.on_root(capture)
    return found[0] if found else None


def save_into(path: Path, whole: Checkpoint | None, step: int, own: bool) -> None:
    """Writes a checkpoint into the folder. On rank 0.

    Raises RunFolderError where others' checkpoints are in it, unless it is the caller's `own`, and CheckpointError.
    """
    assert whole is not None
    folder = CheckpointFolder(Folder(path / "checkpoints"))
    try:
        if not own and folder.exists():
            raise RunFolderError(
                f"{path} holds checkpoints of another run, which would be removed; call resume on it first, or choose "
                "another folder"
            )
    except OSError as error:
        raise CheckpointError(f"could not read {path}: {error.strerror or error}") from None
    folder.save(whole, step)


def saved_in(path: Path) -> Checkpoint | None:
    """The newest whole checkpoint in the folder; None where there is none at all. On rank 0. Raises CheckpointError."""
    try:
        found, problems = CheckpointFolder(Folder(path / "checkpoints")).newest()
    except OSError as error:
        raise CheckpointError(f"could not read {path}: {error.strerror or error}") from None
    if found is None and problems:
        raise CheckpointError(f"{problems[0]}; no checkpoint in {path} is whole")
    for problem in problems:
        say(f"warning: {problem}; an older checkpoint is used", sys.stderr)
    return found


def refuse_other(checkpoint: Checkpoint | None, mine: Metadata, name: str) -> None:
    """Raises RunFolderError where a checkpoint is of other settings. On rank 0."""
    assert checkpoint is not None
    theirs = Metadata.from_document(checkpoint.document)
    then, now = theirs.config or {}, mine.config or {}
    if "loop" not in then:
        raise RunFolderError(f"{name}: the checkpoint is of fit or of the command line; resume it there")
    for key, value in now.items():
        if key in then and then[key] != value:
            raise RunFolderError(
                f"{name}: the run began with {key} {then[key]}, and it is now {value}; give it the same, or begin anew "
                "in another folder"
            )
    if theirs.contents is not None and mine.contents is not None and theirs.contents != mine.contents:
        raise RunFolderError(f"{name}: the run began with other examples; give it the same")
