"""Real data under mpirun: MNIST where its files are, and one copy of a data set for all ranks of a node."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from distsgd.core.device import Array
from tests.parallel.launch import ROOT, environment, find_mpirun, module, result, summary, train
from tests.waiting import LIMIT

MNIST = ROOT.parent / "shared" / "data"
MB = 1 << 20


@pytest.mark.long
@pytest.mark.skipif(not (MNIST / "mnist").is_dir(), reason=f"MNIST's files are not in {MNIST}")
def test_mnist(tmp_path: Path) -> None:
    options = ("--dataset", "mnist", "--data-dir", MNIST, "--hidden", 32, "--epochs", 1, "--batch-size", 250)
    options = (*options, "--optimizer", "adam", "--lr", 0.003)
    for ranks in (2, 3):
        train(ranks, tmp_path / f"run-{ranks}", *options)
    assert result(tmp_path / "run-2") == result(tmp_path / "run-3")
    reported = summary(tmp_path / "run-2")
    assert reported["steps"] == 216
    assert reported["test_accuracy"] > 0.9
    assert reported["validation_accuracy"] > 0.9
    assert np.sum(reported["confusion_matrix"]["test"]) == 10_000


def pictures(count: int, shape: tuple[int, ...], number: int) -> tuple[Array, Array]:
    """(bytes (count, *shape), labels (count,)) of ten classes: noise, and a bright patch at a place for each class."""
    rng = np.random.default_rng(number)
    x, y = rng.integers(0, 100, (count, *shape), dtype=np.uint8), np.arange(count) % 10
    for image, label in zip(x, y, strict=True):
        row, column = 5 * (label // 4) + 4, 6 * (label % 4) + 3
        image[..., row : row + 4, column : column + 4] += 150
    return x, y


@pytest.mark.long
def test_mnist_pickle(tmp_path: Path) -> None:
    """A file like mnist.pkl.gz, with its own validation and test parts, of which neither is touched."""
    parts = [pictures(count, (28, 28), number) for number, count in enumerate((300, 70, 45))]
    pairs = tuple(((x.reshape(len(x), 784) / 256).astype(np.float32), y) for x, y in parts)
    (tmp_path / "mnist.pkl.gz").write_bytes(gzip.compress(pickle.dumps(pairs, 2)))
    options = ("--dataset", "mnist.pkl.gz", "--hidden", 40, "--epochs", 4, "--batch-size", 100, "--lr", 0.1)
    for ranks in (1, 2):
        done = train(ranks, tmp_path / f"run-{ranks}", *options, "--expand", "shifts", "--augment", "shift", 1)
        assert "1,500 training, 70 validation, 45 test examples" in done.out
    assert result(tmp_path / "run-1") == result(tmp_path / "run-2")
    reported = summary(tmp_path / "run-1")
    assert reported["validation_accuracy"] > 0.9
    assert np.sum(reported["confusion_matrix"]["validation"]) == 70
    assert np.sum(reported["confusion_matrix"]["test"]) == 45
    scored = module(2, "evaluate", tmp_path, "run-1", "--dataset", "mnist.pkl.gz")
    assert json.loads(scored.out)["accuracy"] == reported["test_accuracy"]
    again = train(1, tmp_path / "last", *options, "--validation-last", 50)
    assert "250 training, 50 validation, 45 test examples" in again.out


@pytest.mark.long
def test_cifar_10(tmp_path: Path) -> None:
    """From an archive of the published form, which stays as it is; augmented, on one and two ranks."""
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            x, y = pictures(60, (3, 32, 32), number)
            content = np.concatenate([y[:, np.newaxis].astype(np.uint8), x.reshape(60, 3072)], axis=1).tobytes()
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    options = ("--dataset", "cifar-10", "--data-dir", tmp_path, "--hidden", 40, "--epochs", 8, "--batch-size", 64)
    for ranks in (1, 2):
        done = train(ranks, tmp_path / f"run-{ranks}", *options, "--augment", "crop 1, flip", "--optimizer", "adam")
        header = " ".join(done.out.split())  # which is wrapped
        assert "270 training, 30 validation, 60 test examples; training images: shift 1, flip" in header
    assert result(tmp_path / "run-1") == result(tmp_path / "run-2")
    assert summary(tmp_path / "run-1")["test_loss"] < 2.2
    assert 'augment = [\n    "shift 1",\n    "flip",\n]' in (tmp_path / "run-1" / "config.toml").read_text()
    scored = module(2, "evaluate", tmp_path, "run-2", "--dataset", "cifar-10", "--data-dir", tmp_path)
    assert json.loads(scored.out)["loss"] == summary(tmp_path / "run-1")["test_loss"]
    assert not list(tmp_path.glob("*.bin"))


def _pss(processes: list[int]) -> int:
    """Bytes of memory of these processes together, where shared pages count once."""
    total = 0
    for process in processes:
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:  # it has ended, or is about to
            continue
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def _ranks_below(process: int) -> list[int]:
    """The processes below this one that train."""
    try:
        tasks = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    here = [process] if b"distsgd.train" in command and b"sh" not in command[:1] else []
    return here + [rank for task in tasks for rank in _ranks_below(int(task))]


def _peak(tmp_path: Path, data: Path, ranks: int) -> int:
    """The largest sum of PSS seen while `ranks` ranks load this data and make a few steps."""
    mpirun, reason = find_mpirun()
    if mpirun is None:
        pytest.skip(reason)
    options = ["--dataset", str(data), "--hidden", "8", "--max-steps", "3", "--validation-fraction", "0", "--quiet"]
    process = subprocess.Popen(
        [mpirun, "-n", str(ranks), sys.executable, "-m", "distsgd.train", *options, "--out", f"run-{data.stem}"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak = 0
    try:
        while process.poll() is None:
            peak = max(peak, _pss(_ranks_below(process.pid)))
            time.sleep(0.002)
    finally:
        if process.poll() is None:
            process.terminate()
        out = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 0, out
    return peak


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="/proc/PID/smaps_rollup is Linux's")
def test_one_copy_of_the_data_per_node(tmp_path: Path) -> None:
    """What four ranks take more with 96 MB of data than with next to none is one copy, at the peak of loading too."""
    size = 96 * MB
    small, large = tmp_path / "small.npz", tmp_path / "large.npz"
    for path, count in ((small, 64), (large, size // 4096)):
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (count, 4096), dtype=np.uint8)
        np.savez(path, x=x, y=np.arange(count) % 7)
    without, with_data = _peak(tmp_path, small, 4), _peak(tmp_path, large, 4)
    more = with_data - without
    assert 0.8 * size < more, f"only {more / MB:.0f} MB more: the measurement missed it"
    assert more < 1.4 * size, f"{more / MB:.0f} MB more for {size / MB:.0f} MB of data"
