"""A run that continues needs no more memory than training: checkpoints are read straight into their place."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from distsgd.core.checkpoint import Checkpoint, StoredArrays
from distsgd.core.checkpoint_folder import CheckpointFolder, read_checkpoint
from distsgd.core.errors import CheckpointError
from distsgd.core.folders import Folder
from distsgd.core.layout import Layout
from distsgd.training.checkpoint_store import fill_model
from tests.waiting import LIMIT

SHAPES = {f"w{number}": (512, 1024) for number in range(8)}
ALL = 8 * 512 * 1024 * 4  # bytes
FIT = """
import resource
import sys
import numpy as np
import distsgd

x = np.random.default_rng(0).random((64, 784), np.float32)
distsgd.fit("mlp", (x, np.arange(64) % 10), hidden=[1536, 1536], optimizer="adam", batch_size=32, microbatches=1,
            epochs=9, validation_fraction=0.1, validate_every="1", out=sys.argv[1], max_steps=int(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture
def stored(tmp_path: Path) -> CheckpointFolder:
    folder = CheckpointFolder(Folder(tmp_path))
    random = np.random.default_rng(0)
    arrays = {f"parameters/{name}": random.random(shape, np.float32) for name, shape in SHAPES.items()}
    folder.save(Checkpoint(arrays, {"step": 3}), 3)
    return folder


def test_finding_a_checkpoint_takes_no_memory_for_its_arrays(stored: CheckpointFolder) -> None:
    tracemalloc.start()
    try:
        found, _ = stored.newest()
        assert found is not None
        views = Layout.of(SHAPES).views(np.zeros(ALL // 4, np.float32))
        before = tracemalloc.get_traced_memory()[0]
        fill_model(views, found.group("parameters"), "parameters")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert before - ALL < ALL / 20
    assert peak - before < ALL / 20
    whole = read_checkpoint(stored.folder / "last.safetensors").group("parameters")
    assert all(np.array_equal(view, whole[name]) for name, view in views.items())
    assert whole.keys() == views.keys()


def test_a_checkpoint_that_changes_while_it_is_read_is_refused(stored: CheckpointFolder) -> None:
    found, _ = stored.newest()
    assert found is not None
    assert isinstance(found.arrays, StoredArrays)
    path = stored.folder / "step-3.safetensors"
    with path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"abcd")
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        found.arrays["parameters/w0"]


def test_a_checkpoint_that_is_removed_can_still_be_read(stored: CheckpointFolder) -> None:
    found, _ = stored.newest()
    assert found is not None
    for path in stored.folder.iterdir():
        path.unlink()
    assert found.arrays["parameters/w0"].shape == (512, 1024)


@pytest.mark.long
def test_resume_needs_no_more_memory_than_training(tmp_path: Path) -> None:
    """Of the whole process, at its largest; 1.1 times is promised."""
    command = [sys.executable, "-c", FIT, str(tmp_path / "run")]
    peaks = []
    for steps in ("3", "6"):
        done = subprocess.run([*command, steps], capture_output=True, text=True, timeout=LIMIT, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] <= 1.1 * peaks[0]
