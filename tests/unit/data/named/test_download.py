"""Downloads from a server on this machine: whole and checked, or not there at all."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import struct
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.errors import DataError
from distsgd.data.named.cifar10 import TEST, TRAIN, Cifar10
from distsgd.data.named.datasets import OpenOptions, open_dataset, read_array
from distsgd.data.named.download import checksums_of, download
from distsgd.data.named.mnist import FASHION_MNIST, MNIST, IdxDataset
from tests.waiting import LIMIT

FILES = tuple(MNIST.checksums)
LABELS = FILES[1]
CIFAR = "cifar-10-binary.tar.gz"
ENDED = threading.Event()
"""Set where an answer without an end has been given up."""


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, quietly; where the address says so half a file, one without an end, or a byte now and then."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        if self.path.startswith("/long/"):
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while not ENDED.is_set():
                    self.wfile.write(bytes(100_000))
            return
        if self.path.startswith(("/slow/", "/slow-header/")):
            if self.path.startswith("/slow/"):
                self.send_response(200)
                self.end_headers()
            with suppress(OSError):
                while not ENDED.wait(0.02):
                    self.wfile.write(b"H")
            return
        if not self.path.startswith("/half/"):
            super().do_GET()
            return
        content = Path(self.directory, self.path.rsplit("/", 1)[1]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("site")
    for name in FILES:
        shape = (8, 3, 3) if "images" in name else (8,)
        header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        content = header + bytes(i % 10 for i in range(int(np.prod(shape))))
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
    with tarfile.open(folder / CIFAR, "w:gz") as archive:
        for name in (*TRAIN, *TEST):
            content = (bytes([len(name) % 10]) + bytes(3072)) * 2
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(autouse=True, scope="module")
def what_was_there_before() -> Iterator[None]:
    """It is no test's here, and looking through it takes longer than a test."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_connection_left_open() -> Iterator[None]:
    """Where warnings are errors, a socket that is collected unclosed fails this test, not a later one."""
    yield
    gc.collect()


def local_dataset(url: str, folder: Path, of_content: bool = False) -> IdxDataset:
    sums = {}
    for name in FILES:
        content = (folder / f"{name}.gz").read_bytes()
        sums[name] = [hashlib.md5(gzip.decompress(content) if of_content else content).hexdigest()]
    return IdxDataset("mnist", url, sums)


@pytest.mark.parametrize("of_content", [False, True])
def test_missing_files_are_downloaded_once(site: tuple[str, Path], tmp_path: Path, of_content: bool) -> None:
    pytest.importorskip("pooch")
    url, folder = site
    options = OpenOptions(data_dir=str(tmp_path))
    source = local_dataset(url, folder, of_content).open(options)
    assert read_array(source.arrays["y_test"]).tolist() == list(range(8))
    assert sorted(p.name for p in (tmp_path / "mnist").iterdir()) == sorted(f"{name}.gz" for name in FILES)
    again = local_dataset("http://127.0.0.1:9/", folder).open(options)  # nothing listens there
    assert again.arrays.keys() == source.arrays.keys()


def test_only_what_is_missing_is_downloaded(site: tuple[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("pooch")
    url, folder = site
    (tmp_path / "mnist").mkdir()
    unpacked = gzip.decompress((folder / f"{LABELS}.gz").read_bytes())
    (tmp_path / "mnist" / LABELS).write_bytes(unpacked)
    local_dataset(url, folder).open(OpenOptions(data_dir=str(tmp_path)))
    found = {p.name for p in (tmp_path / "mnist").iterdir()}
    assert found == {LABELS, *(f"{name}.gz" for name in FILES if name != LABELS)}


def test_the_environment_names_a_mirror_and_another_file_is_refused(
    site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pooch")
    monkeypatch.setenv("DISTSGD_FASHION_MNIST_URL", site[0])
    with pytest.raises(DataError, match="expected a file with MD5 8d4fb7e6c68d591d4c3dfef9ec88bf0d, got") as caught:
        open_dataset("fashion-mnist", data_dir=str(tmp_path))
    assert site[0] in str(caught.value)
    assert not (tmp_path / "fashion-mnist").exists()


@pytest.mark.parametrize("address", ["/none", "/half"])
def test_a_failed_download_leaves_nothing_and_names_folder_and_files(
    site: tuple[str, Path], tmp_path: Path, address: str
) -> None:
    pytest.importorskip("pooch")
    url, folder = site
    with pytest.raises(DataError) as caught:
        local_dataset(url + address, folder).open(OpenOptions(data_dir=str(tmp_path)))
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "mnist") in message
    assert all(name in message for name in FILES)
    assert not (tmp_path / "mnist").exists()


def test_a_download_that_is_longer_than_the_file_is_given_up(site: tuple[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("pooch")
    ENDED.clear()
    try:
        with pytest.raises(DataError, match="more than 1000000 bytes came"):
            download(f"{site[0]}/long/{LABELS}.gz", tmp_path / "a" / "labels.gz", ["0"], 1_000_000)
    finally:
        ENDED.set()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["/slow", "/slow-header"])
def test_a_download_that_drips_is_given_up(
    site: tuple[str, Path], tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pooch")
    monkeypatch.setattr("distsgd.data.named.download.PATIENCE", 0.5)
    ENDED.clear()
    try:
        with pytest.raises(DataError, match="less than 16384 bytes came in 0 s"):
            download(f"{site[0]}{address}/{LABELS}.gz", tmp_path / "a" / "labels.gz", ["0"], 1_000_000)
    finally:
        ENDED.set()
        for thread in threading.enumerate():
            if thread.name == "distsgd-download":
                thread.join(LIMIT)
    assert not list(tmp_path.iterdir())


def local_cifar(url: str, folder: Path) -> Cifar10:
    return Cifar10(url, (hashlib.md5((folder / CIFAR).read_bytes()).hexdigest(),))


def test_cifar_is_downloaded_once(site: tuple[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("pooch")
    url, folder = site
    source = local_cifar(url, folder).open(OpenOptions(data_dir=str(tmp_path)))
    assert read_array(source.arrays["y_train"]).tolist() == [2] * 10
    assert read_array(source.arrays["x_test"]).shape == (2, 3, 32, 32)
    assert [path.name for path in (tmp_path / "cifar-10").iterdir()] == [CIFAR]
    again = local_cifar("http://127.0.0.1:9/", folder).open(OpenOptions(data_dir=str(tmp_path)))
    assert again.arrays.keys() == source.arrays.keys()


@pytest.mark.parametrize("address", ["", "/none", "/half"])
def test_cifar_that_is_another_file_or_breaks_off(
    site: tuple[str, Path], tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pooch")
    monkeypatch.setenv("DISTSGD_CIFAR_10_URL", f"{site[0]}{address}/")
    with pytest.raises(DataError, match=r"^cifar-10: missing .*; ") as caught:
        open_dataset("cifar-10", data_dir=str(tmp_path))
    assert address or "MD5 c32a1d4ab5d03f1284b67883e8d87530, got" in str(caught.value)
    assert f"{site[0]}{address}/{CIFAR}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cifar-10").exists()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense"])
def test_offline(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pooch")
    monkeypatch.setenv("DISTSGD_MNIST_URL", address)
    with pytest.raises(DataError, match=r"that failed .*; put the file into"):
        open_dataset("mnist", data_dir=str(tmp_path))


def test_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pooch")
    monkeypatch.setenv("DISTSGD_MNIST_URL", "http://127.0.0.1:9")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="that failed"):
        open_dataset("mnist", data_dir=str(tmp_path / "file"))


def test_without_pooch_the_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"pip install 'distsgd\[download\]'"):
        download("http://127.0.0.1:9/a", tmp_path / "a", ["0"], 10)


def test_a_download_prints_nothing(site: tuple[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pooch")
    url, folder = site
    download(f"{url}/{LABELS}.gz", tmp_path / "labels.gz", checksums_of(folder / f"{LABELS}.gz"), 10_000)
    assert capfd.readouterr() == ("", "")


def test_published_addresses_and_checksums() -> None:
    for dataset in (MNIST, FASHION_MNIST):
        assert list(dataset.checksums) == list(FILES)
        assert all(len(md5) == 32 for sums in dataset.checksums.values() for md5 in sums)
    real = Path(__file__).resolve().parents[5] / "shared" / "data" / "mnist"
    if not real.is_dir():
        pytest.skip("the real MNIST files are not beside this checkout")
    for name, sums in MNIST.checksums.items():
        assert not checksums_of(real / f"{name}.gz").isdisjoint(sums)
