"""Writes a trained model as a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distsgd.core.checkpoint import Checkpoint
from distsgd.core.errors import RunFolderError
from distsgd.core.files import expanded
from distsgd.run.config_file import to_toml
from distsgd.run.files.folder import RunFolder
from distsgd.run.files.records import SAVED
from distsgd.run.trained.stored_model import StoredModel


def save_model(
    path: str | os.PathLike[str],
    stored: StoredModel,
    summary: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
) -> None:
    """Writes it into a folder that is not there yet, or empty: the checkpoint last. Raises RunFolderError."""
    folder = RunFolder(expanded(path))
    if note := folder.lock():
        raise RunFolderError(f"save: {note}")
    try:
        folder.check_locked()
        if not folder.is_unused():
            raise RunFolderError(f"save: there is something in {folder.path}; name a folder that is not there yet")
        folder.create(to_toml(stored.config))
        for record in records:
            folder.add_metrics(record)
        folder.sync_metrics()
        if summary:
            folder.write_summary(summary)
        arrays: dict[str, Any] = {}
        for kind, views in (("parameters", stored.params), ("statistics", stored.state)):
            arrays |= {f"{kind}/{name}": np.asarray(array) for name, array in views.items()}
        document = {**stored.metadata.to_document(), "step": summary.get("steps", 0), SAVED: True}
        folder.checkpoints.save_best(Checkpoint(arrays, document))
    except OSError as error:
        raise RunFolderError(f"save: could not write {folder.path}: {error.strerror or error}") from None
    finally:
        folder.unlock()
