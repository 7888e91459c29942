"""Feeds damaged files to the formats that libraries in C read: python -m tests.fuzz_formats --files 300.

Each is looked through and read whole in a process of its own, as `distsgd data FILE` and training do, which has to end
with status 0, or with status 2 and one sentence: never by a signal, with a traceback, late, or with much memory.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.fuzz import mutated

import numpy as np  # isort: skip

import h5py
import pyarrow
import zarr
from numcodecs import Blosc, Zlib, Zstd
from PIL import Image
from pyarrow import feather, parquet

from distsgd.cli.data import show
from distsgd.core.errors import DistsgdError, OutOfMemoryError, UserCodeError
from distsgd.core.output import report_error
from distsgd.data.sources.base import ReadOptions, read_array
from distsgd.data.sources.registry import open_path
from distsgd.data.sources.tables.arrow_columns import arrow
from distsgd.parallel.serial import SerialCommunicator

LIMIT_SECONDS = 5
"""Of the processor. Its time on the clock is only there to end what waits."""
LIMIT_WAIT = 300.0
LIMIT_MEMORY = 256 << 20
"""More than the process had before."""
_LIMIT_ADDRESSES = 2 << 30
"""Of which threads take many that they never use."""
DRAWS = np.random.default_rng(0)
X = DRAWS.standard_normal((40, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
Make = Callable[[Path], None]


def hdf5(path: Path, **options: Any) -> None:
    with h5py.File(path, "w", **options) as file:
        file.create_dataset("x", data=X[:, :3], chunks=(8, 3), compression="gzip", shuffle=True, fletcher32=True)
        file.create_dataset("in/z", data=X[:, 3:], chunks=(16, 3), compression="lzf")
        file["y"] = Y


def netcdf(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("time", data=np.arange(40)).make_scale("time")
        x = file.create_dataset("x", data=np.round(X * 100).astype(np.int16), chunks=(8, 6), compression="gzip")
        x.attrs.update(scale_factor=0.01, add_offset=1.0, _FillValue=np.int16(-999))
        x.dims[0].attach_scale(file["time"])
        file.create_dataset("y", data=Y).dims[0].attach_scale(file["time"])


def zarr_folder(version: int, **options: Any) -> Make:
    def make(path: Path) -> None:
        group = zarr.open_group(path, mode="w", zarr_format=version)  # type: ignore[arg-type]
        group.create_array("x", shape=X.shape, dtype=X.dtype, chunks=(8, 6), **options)[...] = X
        options.pop("shards", None)
        group.create_array("y", shape=Y.shape, dtype=Y.dtype, chunks=(16,), **options)[...] = Y

    return make


def table() -> Any:
    texts = pyarrow.array(["red", "green", None, "blue"] * 10).dictionary_encode()
    some = pyarrow.array([None if k % 7 == 0 else float(k) for k in range(40)])
    wide = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(X[:, :2].reshape(-1)), 2)
    numbers = {"a": X[:, 0], "b": np.arange(40, dtype=np.int16), "y": Y}
    return pyarrow.table({**numbers, "text": texts, "some": some, "wide": wide})


def parquet_file(**options: Any) -> Make:
    return lambda path: parquet.write_table(table(), path, row_group_size=16, **options)


def feather_file(compression: str) -> Make:
    return lambda path: feather.write_feather(table(), path, compression=compression, chunksize=16)


def images(ending: str, mode: str = "RGB", **options: Any) -> Make:
    def make(path: Path) -> None:
        for number in range(4):
            (path / f"{number % 2}").mkdir(parents=True, exist_ok=True)
            pixels = DRAWS.integers(0, 256, (9, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(path / f"{number % 2}" / f"{number}.{ending}", **options)

    return make


def text(content: str) -> Make:
    return lambda path: path.write_text(content)


LINES = "\n".join(
    f"{label} " + " ".join(f"{k}:{v:g}" for k, v in enumerate(row, 1)) for label, row in zip(Y, X, strict=True)
)
TABLE = "a,b,y\n" + "\n".join(f'{k / 3},"te, xt{k % 3}",{k % 2}' for k in range(60))
FORMATS: dict[str, tuple[str, list[Make]]] = {
    "hdf5": ("a.h5", [hdf5, lambda path: hdf5(path, libver="latest")]),
    "netcdf": ("a.nc", [netcdf]),
    "zarr 2": ("a.zarr", [zarr_folder(2, compressors=packer) for packer in (Zstd(), Zlib(), None)]),
    "blosc": ("a.zarr", [zarr_folder(2, compressors=Blosc())]),
    "zarr 3": ("a.zarr", [zarr_folder(3), zarr_folder(3, shards=(16, 6))]),
    "parquet": ("a.parquet", [
        parquet_file(), parquet_file(compression="zstd", data_page_version="2.0"),
        parquet_file(compression="none", use_dictionary=False, write_page_checksum=True),
        parquet_file(compression="gzip", column_encoding={"a": "BYTE_STREAM_SPLIT", "b": "DELTA_BINARY_PACKED"},
                     use_dictionary=False),
    ]),
    "feather": ("a.feather", [feather_file(name) for name in ("lz4", "zstd", "uncompressed")]),
    "libsvm": ("a.svm", [text(LINES)]),
    "csv": ("a.csv", [text(TABLE), text(TABLE.replace(",", "\t").replace("\n", "\r\n"))]),
    "images": ("d", [
        images("png"), images("png", "P"), images("jpg"), images("bmp"), images("ppm"), images("pgm", "L"),
        images("webp"), images("webp", lossless=True), images("jpg", "L", progressive=True),
    ]),
}  # fmt: skip
ROLES = {"hdf5": ["--x", "x", "in/z"], "parquet": ["--x", "a", "b", "some", "wide", "text"], "feather": ["--x", "all"]}


def warm() -> None:
    """Loads what the children would load each, and begins no thread."""
    arrow()
    Image.init()
    with suppress(DistsgdError), tempfile.TemporaryDirectory() as folder:
        for name in ("hdf5", "csv"):
            path = Path(folder) / FORMATS[name][0]
            FORMATS[name][1][0](path)
            read_array(open_path(path).arrays["x_train"])


def look_and_read(path: Path, options: list[str]) -> int:
    """The exit status of `distsgd data`, where it isn't 0, or of reading all of the file."""
    try:
        show(SerialCommunicator(), [str(path), *options])
        with suppress(DistsgdError):
            show(SerialCommunicator(), [str(path)])
        asked = ReadOptions(tuple(options[1:]), missing="zero") if options else ReadOptions()
        for source in open_path(path, asked).arrays.values():
            if source.nbytes < LIMIT_MEMORY // 4:
                read_array(source)
    except (UserCodeError, OutOfMemoryError):
        traceback.print_exc()
        return 1
    except DistsgdError as error:
        report_error(error)
        return error.exit_status
    return 0


def in_child(path: Path, options: list[str]) -> str | None:
    """What is wrong with how a child reads this; None where all is well."""
    printed = path.parent / "printed"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (addresses + _LIMIT_ADDRESSES,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_SECONDS, LIMIT_SECONDS + 1))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            out, err = (os.open(f"{printed}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("out", "err"))
            os.dup2(out, 1)
            os.dup2(err, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            status = look_and_read(path, options)
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    until = time.monotonic() + LIMIT_WAIT
    while True:
        done, ended, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return f"did not end within {LIMIT_WAIT:g} s"
        time.sleep(0.001)
    printed_errors = Path(f"{printed}.err").read_text(errors="replace").strip()
    if os.WIFSIGNALED(ended):
        return f"ended by {signal.Signals(os.WTERMSIG(ended)).name}: {printed_errors[-500:]}"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if (used.ru_maxrss - before) * 1024 > LIMIT_MEMORY:
        return f"took {(used.ru_maxrss - before) >> 10} MiB"
    lines, status = printed_errors.splitlines(), os.WEXITSTATUS(ended)
    well = (status == 0 and not lines) or (status == 2 and len(lines) == 1 and lines[0].startswith("distsgd: error: "))
    return None if well else f"status {status}: {printed_errors[-2000:]}"


def damaged(path: Path, random_: random.Random) -> None:
    """Changes one file of those that are there."""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    one = random_.choice(files)
    one.write_bytes(mutated(one.read_bytes(), [one.read_bytes()], random_))


def finds(name: str, count: int, seed: int = 0, keep: Path | None = None) -> list[str]:
    """What is wrong with how damaged files of a format are read. Those of `count` files that make trouble are kept."""
    file, makes = FORMATS[name]
    random_, found = random.Random(f"{name} {seed}"), []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        intact = []
        for number, make in enumerate(makes):
            intact.append(Path(folder) / f"intact-{number}" / file)
            intact[-1].parent.mkdir()
            make(intact[-1])
        place = Path(folder) / "one"
        for number in range(-len(intact), count):
            place.mkdir()
            path = place / file
            chosen = intact[number] if number < 0 else random_.choice(intact)
            (shutil.copytree if chosen.is_dir() else shutil.copy)(chosen, path)
            if number >= 0:
                damaged(path, random_)
            problem = in_child(path, ROLES.get(name, []))
            if number < 0 and (place / "printed.err").read_text():
                problem = f"intact, and refused: {(place / 'printed.err').read_text()}"
            if problem is not None:
                found.append(f"{name} {number}: {problem}")
                if keep is not None:
                    shutil.copytree(place, keep / f"{name.replace(' ', '-')}-{seed}-{number}", dirs_exist_ok=True)
            shutil.rmtree(place)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=300, help="of each format (default: %(default)d)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", action="append", choices=list(FORMATS), default=[])
    parser.add_argument("--keep", type=Path, default=Path("fuzz-finds"), help="a folder for those that make trouble")
    options = parser.parse_args()
    warm()
    total = 0
    for name in options.format or FORMATS:
        began = time.monotonic()
        found = finds(name, options.files, options.seed, options.keep)
        print(f"{name}: {options.files} files, {time.monotonic() - began:.0f} s, {len(found)} finds", flush=True)
        for one in found:
            print("FIND", one, flush=True)
        total += len(found)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
