"""Writes a trained model as a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from distsgd.core.checkpoint import Checkpoint
from distsgd.core.errors import ConfigurationError, DistsgdError, RunFolderError
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
    """Writes it into a folder that is not there yet, or empty: the checkpoint last. Raises RunFolderError, and
    ConfigurationError for what is no path."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigurationError(f"save: expected the path of a folder, got {path!r}")
    folder = RunFolder(expanded(text))
    if note := folder.lock():
        raise RunFolderError(f"save: {note}")
    try:
        try:
            folder.check_locked()
        except RunFolderError as error:
            reason = str(error).replace("choose another with --out", "name another folder")
            raise RunFolderError(f"save: {reason}") from None
        if not folder.is_unused():
            raise RunFolderError(f"save: there is something in {folder.path}; name a folder that is not there yet")
        try:
            _write(folder, stored, summary, records)
        except (OSError, DistsgdError) as error:
            _take_back(folder)
            reason = str(error.strerror or error) if isinstance(error, OSError) else str(error)
            raise RunFolderError(
                f"save: could not write {folder.path}; what was written is removed: {reason}"
            ) from None
    finally:
        folder.unlock()


def _write(
    folder: RunFolder, stored: StoredModel, summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> None:
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


def _take_back(folder: RunFolder) -> None:
    """Removes what `_write` has written, so that it can be saved there again."""
    checkpoints = folder.files.child("checkpoints")
    written = [(checkpoints, "best.safetensors")]
    written += [(folder.files, name) for name in ("summary.json", "metrics.jsonl", "config.toml")]
    for place, name in written:
        with suppress(OSError):
            place.remove(name)
            place.remove_leftovers()
    checkpoints.remove_if_empty()
