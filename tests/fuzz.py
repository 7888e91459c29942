"""Feeds the readers of files with damaged ones for as long as one likes: python -m tests.fuzz --seconds 60.

Each reader may give what it promises or an error of one sentence. Anything else is a find: another exception, more than
a second, more than 64 MB. Finds are printed and kept in fuzz-finds/, to become cases of tests/parallel/bad_inputs.py.
With atheris (pip install atheris) the search is guided by what code a file reaches: --engine atheris --target NAME.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from distsgd.core import runtime

runtime.prepare_alone()

import numpy as np  # noqa: E402

from distsgd.core.checkpoint import Checkpoint, decode, encode  # noqa: E402
from distsgd.core.errors import DistsgdError, OutOfMemoryError, UserCodeError  # noqa: E402
from distsgd.data.named.cifar10 import CIFAR_10, OpenOptions, read_python  # noqa: E402
from distsgd.data.sources.arrays.idx import IdxSource  # noqa: E402
from distsgd.data.sources.base import ReadOptions, read_array  # noqa: E402
from distsgd.data.sources.look import look_at  # noqa: E402
from distsgd.data.sources.registry import open_path  # noqa: E402
from distsgd.data.sources.tables.arrow_columns import arrow  # noqa: E402
from distsgd.parallel.serial import SerialCommunicator  # noqa: E402
from distsgd.run.config import TrainConfig  # noqa: E402
from distsgd.run.config_file import read_toml, to_toml  # noqa: E402
from distsgd.run.files.folder import RunFolder  # noqa: E402
from distsgd.run.files.summary import last_line  # noqa: E402
from distsgd.run.fit import fit  # noqa: E402
from distsgd.run.resume import find_start, is_finished  # noqa: E402
from distsgd.run.trained.stored_model import load_model  # noqa: E402
from distsgd.training.run_state import RunState  # noqa: E402

LIMIT_BYTES = 64 << 20
LIMIT_SECONDS = 1.0
X = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
Target = tuple[list[bytes], Callable[[Path, bytes], object]]


class TooSlow(Exception):
    """A file has kept a reader busy for too long."""


def saved(save: Callable[..., None], *arrays: Any, **named: Any) -> bytes:
    stream = io.BytesIO()
    save(stream, *arrays, **named)
    return stream.getvalue()


def read_all(path: Path) -> None:
    for source in open_path(path).arrays.values():
        assert source.nbytes < LIMIT_BYTES
        assert read_array(source).shape == source.shape


def idx_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert read_array(IdxSource.open(path, 3)).ndim == 3


def in_npz(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)
        archive.writestr("y.npy", saved(np.save, np.array([0, 1])))
    read_all(path)


def as_npy(path: Path, content: bytes) -> None:
    (path.parent / "x.npy").write_bytes(content)
    np.save(path.parent / "y.npy", [0, 1])
    read_all(path.parent / "x.npy")


def as_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    read_all(path)


def in_folder(path: Path, content: bytes) -> None:
    np.save(path.parent / "x.npy", X[:, :, 0] / 3)
    np.save(path.parent / "y.npy", [0, 1])
    (path.parent / "columns.json").write_bytes(content)
    read_all(path.parent)


def looked_at(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    look_at(str(path), ReadOptions())


def cifar_archive(path: Path, content: bytes) -> None:
    (path.parent / "cifar-10-binary.tar.gz").write_bytes(content)
    for source in CIFAR_10.open(OpenOptions(str(path.parent), download=False)).arrays.values():
        read_array(source)


def small_run(folder: Path) -> Checkpoint:
    """A run of a few steps in `folder`, and what its last checkpoint holds."""
    x = np.arange(60.0).reshape(20, 3) % 7
    fit("softmax", (x, np.arange(20) % 2), epochs=1, batch_size=10, out=str(folder))
    return decode((folder / "checkpoints" / "last.safetensors").read_bytes())


def sealed(text: bytes, arrays: bytes) -> bytes:
    """A checkpoint file whose document is this text, with the right digest, if there is a place for it."""
    named = b'{"format":2,"sha256":"' + b"0" * 64 + b'",' + text.removeprefix(b"{")
    header = {"__metadata__": {"distsgd": named.decode("utf-8", "replace")}, **json.loads(arrays)}
    head = json.dumps(header).encode()
    data = struct.pack("<Q", len(head)) + head + bytes(max(i["data_offsets"][1] for i in json.loads(arrays).values()))
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def checkpoint_targets(folder: Path) -> dict[str, Target]:
    """Checkpoints as bytes, and intact ones whose documents say anything."""
    found = small_run(folder)
    whole = bytes(encode(found))
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    document = json.loads(header.pop("__metadata__")["distsgd"])
    del document["format"], document["sha256"]
    arrays, text = json.dumps(header).encode(), json.dumps(document).encode()
    config = read_toml(folder / "config.toml")
    alone = SerialCommunicator()

    def use(path: Path, content: bytes) -> None:
        folder = RunFolder(path.parent / "run")
        folder.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        (folder.path / "config.toml").touch()
        (folder.checkpoints.folder / "last.safetensors").write_bytes(content)
        with suppress(DistsgdError):
            load_model(alone, str(folder.path), None)
        start = find_start(config, folder)
        if start.checkpoint is not None:
            x = np.arange(60.0).reshape(20, 3) % 7
            fit("softmax", (x, np.arange(20) % 2), epochs=0, batch_size=10, out=str(folder.path))

    assert decode(sealed(text, arrays)).document["step"] == found.document["step"]
    return {
        "checkpoint": ([whole], use),
        "document": ([text], lambda path, content: use(path, sealed(content, arrays))),
    }


def use_summary(path: Path, content: bytes) -> None:
    folder = RunFolder(path.parent)
    folder.summary.write_bytes(content)
    found = folder.read_summary()
    if found is not None and is_finished(TrainConfig(), found, RunState()):
        last_line(found, "run", quiet=False)


def use_records(path: Path, content: bytes) -> None:
    folder = RunFolder(path.parent)
    folder.metrics.write_bytes(content)
    folder.cut_metrics(3)


def use_toml(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    config = read_toml(path)
    to_toml(config)
    config.name()


def targets(folder: Path) -> dict[str, Target]:
    """By name: files to begin with, and what reads one."""
    idx = b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 4) + X.tobytes()
    pairs = ((np.zeros((2, 3), np.float32), np.array([0, 1])),) * 3
    pickles = [pickle.dumps(pairs, protocol) for protocol in (0, 2, 4, 5)]
    columns = {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2], "filenames": ["a", "b"]}
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            entry.size = 3073
            archive.addfile(entry, io.BytesIO(bytes(3073)))
    tables = [b'a,b,y\n1,red,0\n2.5,"b,l\nue",1\n', b"1;2;0\n3;4;1\n", b"\xef\xbb\xbfa\ty\r\n1\t0\r\n,1\r\n"]
    named = {"inputs": ["a", "b"], "categories": {"b": ["c", "d"]}, "widths": {}, "fill": [1.0, 0.0, 0.0],
             "missing": "mean", "target": ["y"]}  # fmt: skip
    about = {"version": 1, "columns": named, "class_names": ["no", "yes"], "num_classes": 2, "scale": 1.0}
    arrow()  # so that its memory doesn't count
    summary = {"status": "completed", "epochs": 1, "steps": 2, "parameters_sha256": "0" * 64, "train_loss": 0.5}
    return {
        "idx": ([idx], idx_file),
        "idx.gz": ([gzip.compress(idx, mtime=0)], idx_file),
        "in gz": ([idx], lambda path, content: idx_file(path, gzip.compress(content, 1))),
        "npz": ([saved(s, x=X, y=[0, 1]) for s in (np.savez, np.savez_compressed)], as_file),
        "in npz": ([saved(np.save, X), saved(np.save, np.asfortranarray(X * 1.5))], in_npz),
        "look": ([saved(s, a=X, b=[0, 1]) for s in (np.savez, np.savez_compressed)], looked_at),
        "csv": (tables, lambda path, content: as_file(path.with_suffix(".csv"), content)),
        "csv.gz": (tables, lambda path, content: as_file(path.with_suffix(".csv"), gzip.compress(content, 1))),
        "look at csv": (tables, lambda path, content: looked_at(path.with_suffix(".csv"), content)),
        "libsvm": ([b"1 1:0.5 3:2\n2 2:1 # b\n"], lambda path, content: as_file(path.with_suffix(".svm"), content)),
        "columns.json": ([json.dumps(about).encode()], in_folder),
        "npy": ([saved(np.save, X), saved(np.save, X[:, :, 0] / 3)], as_npy),
        "pickle": (pickles, lambda path, content: as_file(path.with_suffix(".pkl"), content)),
        "cifar": ([tar.getvalue(), gzip.compress(tar.getvalue(), 1)], cifar_archive),
        "columns": (
            [pickle.dumps(columns, protocol) for protocol in (0, 2, 4)],
            lambda path, content: read_python(io.BytesIO(content), len(content), "part"),
        ),
        "toml": ([to_toml(TrainConfig()).encode(), b"epochs = 3\nhidden = [4, 5]\nlr = 1e-3\nout = 'a'\n"], use_toml),
        "summary": ([json.dumps(summary).encode()], use_summary),
        "records": ([b'{"step": 1, "epoch": 1, "train_loss": 0.5}\n' * 3], use_records),
        **checkpoint_targets(folder),
    }


def mutated(content: bytes, others: list[bytes], random_: random.Random) -> bytes:
    """A few changes: bits, bytes, numbers of every width, cuts, repeats, and parts of other files."""
    data = bytearray(content)
    for _ in range(random_.choice((1, 1, 2, 3, 8))):
        if not data:
            break
        at = random_.randrange(len(data))
        kind = random_.randrange(8)
        if kind == 0:
            data[at] ^= 1 << random_.randrange(8)
        elif kind == 1:
            data[at] = random_.choice((0, 1, 0x7F, 0x80, 0xFF, *b"'\"[]{}0-9.eN\n"))
        elif kind == 2:
            width = random_.choice((2, 4, 8))
            number = random_.choice((0, 1, -1, 1 << (8 * width - 1), len(data), random_.getrandbits(8 * width)))
            data[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, random_.choice(("little", "big")))
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + random_.randrange(1, 17)]
        elif kind == 5:
            data[at:at] = data[at : at + random_.randrange(1, 65)] * random_.choice((1, 2, 50))
        elif kind == 6:
            other = random_.choice(others)
            start = random_.randrange(len(other))
            data[at : at + random_.randrange(33)] = other[start : start + random_.randrange(1, 65)]
        else:
            words = (b"null", b"true", b"[]", b"{}", b"1e999", b"-1", b'""', b"NaN", b"9" * 30, b'{"hex":"0x1p0"}')
            data[at : at + random_.randrange(9)] = random_.choice(words)
    return bytes(data)


def one(read: Callable[[Path, bytes], object], content: bytes) -> str | None:
    """What is wrong with how this content is read; None where all is well."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_REAL, 10 * LIMIT_SECONDS)
    began = time.process_time()
    try:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
            began = time.process_time()
            read(Path(folder) / "data.npz", content)
    except (UserCodeError, OutOfMemoryError) as error:
        return str(error)
    except DistsgdError as error:
        if not str(error).isprintable():
            return f"more than a line: {error!s}"
    except Exception:
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if time.process_time() - began > LIMIT_SECONDS:
        return f"took {time.process_time() - began:.1f} s of the processor"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return f"took {grown >> 20} MB" if grown > LIMIT_BYTES else None


def alarm(*_: object) -> None:
    raise TooSlow(f"after {10 * LIMIT_SECONDS} s")


def keep(name: str, content: bytes, problem: str, seen: set[str]) -> None:
    """Prints and stores a find of a new kind."""
    kind = f"{name}: {problem.strip().splitlines()[-1][:80]}"
    if kind not in seen:
        seen.add(kind)
        Path("fuzz-finds").mkdir(exist_ok=True)
        path = Path("fuzz-finds") / f"{name.replace(' ', '-')}-{hashlib.sha256(content).hexdigest()[:8]}"
        path.write_bytes(content)
        print(f"FIND {path}: {problem}", flush=True)


def plain(found: dict[str, Target], seconds: float, seed: int) -> int:
    """The readers in turn, with changed files; returns how many finds there were."""
    random_, seen, counts = random.Random(seed), set[str](), dict.fromkeys(found, 0)
    pools = {name: list(seeds) for name, (seeds, _) in found.items()}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, (_, read) in found.items():
            pool = pools[name]
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                content = mutated(random_.choice(pool), pool, random_)
                problem = one(read, content)
                counts[name] += 1
                if problem is not None:
                    keep(name, content, problem, seen)
    print(", ".join(f"{name} {count:,}" for name, count in counts.items()), f"files; {len(seen)} kinds of finds")
    return len(seen)


def guided(name: str, target: Target, seconds: float) -> None:
    """libFuzzer, which looks at what code each file reaches. Doesn't return."""
    import atheris

    seen = set[str]()
    atheris.instrument_all()
    with tempfile.TemporaryDirectory() as corpus:
        for number, content in enumerate(target[0]):
            (Path(corpus) / f"{number}").write_bytes(content)

        def test(content: bytes) -> None:
            problem = one(target[1], content)
            if problem is not None:
                keep(name, content, problem, seen)

        atheris.Setup([sys.argv[0], corpus, f"-max_total_time={seconds:.0f}", "-max_len=40000", "-verbosity=0"], test)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", default=[])
    parser.add_argument("--engine", choices=("plain", "atheris"), default="plain")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, alarm)
    with tempfile.TemporaryDirectory() as folder:
        found = targets(Path(folder))
        chosen = {name: target for name, target in found.items() if name in (options.target or found)}
        if options.engine == "atheris":
            name, target = next(iter(chosen.items()))
            guided(name, target, options.seconds)
        sys.exit(1 if plain(chosen, options.seconds, options.seed) else 0)


if __name__ == "__main__":
    main()
