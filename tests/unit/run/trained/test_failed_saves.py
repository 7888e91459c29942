"""A trained model that can't be saved: what is no path, a file, a disk that is full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import distsgd
from distsgd import ConfigurationError, RunFolderError
from tests.unit.run.trained.test_trained_model import LABELS, QUICK, X


@pytest.mark.parametrize("path", [None, b"folder", "", "a\0b"])
def test_what_is_no_path_is_not_saved_to(path: Any) -> None:
    result = distsgd.fit("softmax", X, LABELS, **QUICK)
    with pytest.raises(ConfigurationError, match="save: expected the path of a folder, got "):
        result.save(path)


def test_a_file_is_not_saved_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"^save: could not write the run folder .*; name another folder$"):
        distsgd.fit("softmax", X, LABELS, **QUICK).save(tmp_path / "file")


def test_a_save_that_fails_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    result = distsgd.fit("softmax", X, LABELS, **QUICK)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # as a disk that is full: the checkpoint is larger
    try:
        with pytest.raises(RunFolderError, match=r"^save: could not write .*; what was written is removed: "):
            result.save(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "model").rglob("*"))
    result.save(tmp_path / "model")
    assert (distsgd.load(tmp_path / "model").predict(X) == result.predict(X)).all()
