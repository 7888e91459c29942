"""A data set that is larger than the shuffle buffer: the same bits as in memory, on any number of ranks, and one
sentence whatever is wrong with its file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import feather, parquet

import distsgd
from distsgd.core.device import Array
from tests.parallel.launch import ROOT, ends_with, find_mpirun, once, result, run_command, start, summary, train
from tests.waiting import LIMIT, wait_until

ROWS = 6007
OPTIONS = ("--epochs", 3, "--hidden", 16, "--batch-size", 100, "--microbatches", 4, "--patience", 0, "--quiet")
BUFFER = ("--shuffle-buffer", "100KB")


def numbers(dtype: str = "float32") -> tuple[Array, Array]:
    draws = np.random.default_rng(0)
    x = (draws.standard_normal((ROWS, 12)) * 3 + 1).astype(dtype)
    return x, x[:, :4].argmax(axis=1)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """x.npy and y.npy in a folder, of 289 kB in float64, and a cache folder for the test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    for name, array in zip("xy", numbers("float64"), strict=True):
        np.save(folder / f"{name}.npy", array)
    return folder


def test_streamed_is_as_in_memory(data: Path) -> None:
    """Stopped in the middle of an epoch on two ranks, and continued on three with two threads: as `fit` on arrays."""
    out, options = data.parent / "run", ("--dataset", data, *BUFFER, *OPTIONS, "--standardize")
    train(2, out, *options, "--max-steps", 71)
    train(3, out, *options, "--readers", 2)
    given: dict[str, Any] = {"epochs": 3, "hidden": (16,), "batch_size": 100, "patience": 0, "shuffle_buffer": "100KB"}
    arrays = distsgd.fit("mlp", *numbers("float64"), standardize=True, validation_fraction=0.1, **given)
    assert summary(out)["parameters_sha256"] == arrays.summary["parameters_sha256"]
    assert summary(out)["validation_loss"] == arrays.summary["validation_loss"]


REFUSE = """
import os
from pathlib import Path


def refuse(*_):
    Path(__file__).with_name("refused").touch()
    raise OSError("no memory files here")


os.memfd_create = refuse
"""


def test_ranks_that_share_no_memory_read_for_themselves(data: Path) -> None:
    """With the bits of one rank, which has the memory for itself alone."""
    (data.parent / "sitecustomize.py").write_text(REFUSE)
    options = ("--dataset", data, *BUFFER, *OPTIONS, "--standardize", "--epochs", 2)
    path = {"PYTHONPATH": f"{data.parent}{os.pathsep}{ROOT}"}
    train(2, data.parent / "apart", *options, extra=path)
    assert (data.parent / "refused").exists()
    train(None, data.parent / "alone", *options)
    assert result(data.parent / "apart") == result(data.parent / "alone")


@pytest.mark.long
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--standardize", "--train-metrics", "full"),
        ("--validation-last", 1500, "--dtype", "float64"),
        ("--no-shuffle",),
        ("--order-block", 33, "--readers", 3),
    ],
    ids=str,
)
def test_each_format_on_any_number_of_ranks(data: Path, more: tuple[object, ...]) -> None:
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    x, y = numbers("float64")
    np.savez(data.parent / "data.npz", x=x, y=y)
    with h5py.File(data.parent / "data.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(100, 12), compression="gzip")
        file.create_dataset("y", data=y, chunks=(700,))
    group = zarr.create_group(data.parent / "data.zarr")
    for name, array in (("x", x), ("y", y)):
        group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=(128, *array.shape[1:]))[...] = array
    table = pyarrow.table({**{f"x{k}": x[:, k] for k in range(x.shape[1])}, "y": y})
    parquet.write_table(table, data.parent / "data.parquet", row_group_size=900)
    feather.write_feather(table, data.parent / "data.feather", chunksize=500)
    lines = [f"{','.join(map(repr, row))},{label}" for row, label in zip(x.tolist(), y.tolist(), strict=True)]
    (data.parent / "data.csv").write_text("\n".join([",".join(table.column_names), *lines]))
    found = []
    for name in ("data", "data.npz", "data.h5", "data.zarr", "data.parquet", "data.feather", "data.csv"):
        options = ("--dataset", data.parent / name, *BUFFER, *OPTIONS, *more)
        for ranks in (None, 2, 4):
            out = data.parent / f"{name}-{ranks}"
            train(ranks, out, *options)
            found.append(result(out))
    without = [word for word in more if word not in ("--readers", 3)]
    train(1, data.parent / "memory", "--dataset", data, *BUFFER, *OPTIONS, *without, "--no-stream")
    found.append(result(data.parent / "memory"))
    assert all(one[0]["parameters_sha256"] == found[0][0]["parameters_sha256"] for one in found)
    assert all(one[1] == found[0][1] for one in found)


def test_a_number_that_isnt_one_ends_all_ranks_with_its_row(data: Path) -> None:
    x, _ = numbers("float64")
    x[4321, 5] = np.nan
    np.save(data / "x.npy", x)
    done = train(2, data.parent / "run", "--dataset", data, *BUFFER, *OPTIONS, "--no-shuffle", status=2)
    ends_with(done, f"{data} (train): inputs: expected finite numbers, example 4321 holds nan; remove or repair it")


def test_a_damaged_chunk_ends_all_ranks_with_a_sentence(data: Path) -> None:
    h5py, (x, y) = pytest.importorskip("h5py"), numbers("float64")
    path = data.parent / "data.h5"
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("x", data=x, chunks=(100, 12), compression="gzip")
        file["y"] = y
        place = stored.id.get_chunk_info(30).byte_offset
    with path.open("r+b") as raw:
        raw.seek(place + 40)
        raw.write(b"\xff" * 200)
    done = train(2, data.parent / "run", "--dataset", path, *BUFFER, *OPTIONS, status=2)
    ends_with(done, f"{path}: x: expected an intact file, reading it failed")


KILL = """
import os
import signal
from pathlib import Path

from distsgd import Callback


class Kill(Callback):
    def on_step(self, step, loss, examples):
        if step == 71 and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_rank_that_reads_is_killed(data: Path) -> None:
    """No rank waits for its windows, and the restarted run ends with the bits of one that nothing disturbed."""
    (data.parent / "kill.py").write_text(KILL)
    options = ("--dataset", data, *BUFFER, *OPTIONS, "--epochs", 2, "--checkpoint-every", 30)
    train(2, data.parent / "undisturbed", *options)
    killed = ("--", "--out", data.parent / "run", "--callback", "kill.py:Kill", *once(options))
    done = run_command(None, [sys.executable, "-m", "distsgd.launch", "-n", "2", *map(str, killed)], data.parent)
    assert done.status == 0, done.text
    assert (data.parent / "killed").exists()
    assert result(data.parent / "run") == result(data.parent / "undisturbed")


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "readers": (("--readers", 2), "readers: goes with --shuffle-buffer alone"),
    "stream": (("--no-stream",), "stream: goes with --shuffle-buffer alone"),
    "in memory": (
        ("--shuffle-buffer", "1MB", "--order-block", 100, "--readers", 2),
        "readers: would change nothing, for",
    ),
    "packed": (("--dataset", "packed.npz", *BUFFER), "can't be read in blocks; save them with numpy.savez"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_would_change_nothing_is_refused(case: str, data: Path) -> None:
    options, reported = BAD[case]
    x, y = numbers()
    np.savez_compressed(data.parent / "packed.npz", x=x, y=y)
    ends_with(train(None, data.parent / "run", "--dataset", data, *options, *OPTIONS, status=2), reported)


def _shorter(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _other(path: Path) -> None:
    times, contents = path.stat(), bytearray(path.read_bytes())
    contents[len(contents) // 2 :] = bytes(len(contents) - len(contents) // 2)
    with path.open("r+b") as file:
        file.write(contents)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("harm", "reported"),
    [(_shorter, "bytes"), pytest.param(_other, "are no longer what they were", marks=pytest.mark.long)],
)
def test_data_that_change_end_all_ranks_with_a_sentence(data: Path, harm: Any, reported: str) -> None:
    """The last checkpoint stands: with the file as it was the run continues."""
    saved = (data / "x.npy").read_bytes()
    out, times = data.parent / "run", (data / "x.npy").stat()
    options = ("--dataset", data, *BUFFER, *OPTIONS, "--epochs", 2000, "--checkpoint-every", 50)
    line = _line(2, out, *options)
    process = start(line, data.parent)
    try:
        wait_until(lambda: (out / "checkpoints" / "last.safetensors").exists(), "a checkpoint")
        harm(data / "x.npy")
        _, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    lines = [text for text in err.splitlines() if text.startswith("distsgd: error: ")]
    assert len(lines) == 1, err
    assert reported in lines[0]
    assert "Traceback" not in err
    (data / "x.npy").write_bytes(saved)
    os.utime(data / "x.npy", ns=(times.st_atime_ns, times.st_mtime_ns))
    saved_at = summary(out)["steps"]
    train(1, out, *options, "--max-steps", saved_at + 5)
    assert summary(out)["steps"] == saved_at + 5


def _line(ranks: int, out: Path, *arguments: object) -> list[str]:
    mpirun, reason = find_mpirun()
    if mpirun is None:
        pytest.skip(reason)
    words = once(("--out", out, *arguments))
    return [mpirun, "-n", str(ranks), sys.executable, "-m", "distsgd.train", *words]
