"""The part of tests/parallel/bad_inputs.py that is about files made to keep a reader busy: each has at most 1 MB, and
work that grows with the square of its length, or without end, unless it is counted.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.parallel.bad_data import CIFAR, CIFAR_NAME, DATA, MNIST, NPY, NPY_X, PARTS_OF_CIFAR, PICKLE, QUICK
from tests.parallel.bad_files import (
    IMAGES,
    LABELS,
    Case,
    Make,
    X,
    Y,
    checkpoints,
    every,
    file,
    mnist,
    npy,
    npy_bytes,
    pickled,
    run,
    seal,
)

TOML = "--config run.toml --epochs 1 --quiet"
RESUME = "--model softmax --max-steps 5 --quiet --out run"
EVALUATE = "run --dataset digits"
COLLIDING = (1 << 61) - 1
"""Whole numbers have the same hash where they differ by a multiple of this."""


def nested(levels: int) -> bytes:
    """A tuple of two, each of which is the same tuple of two, and so on: a few bytes for 2 ** levels numbers."""
    return b"K\x00" + b"2\x86" * levels


def array_of(dtype: bytes = b"X\2\0\0\0f4", shape: bytes = b"K\1\x85") -> bytes:
    """The call that makes an array of these bytes for a shape and a dtype, which is the last call."""
    made = b"cnumpy\ndtype\n" + dtype + b"\x85R"
    return b"cnumpy.core.numeric\n_frombuffer\n(C\4\0\0\0\0" + made + shape + b"X\1\0\0\0CtR"


def pickle_of(body: bytes) -> Make:
    """mnist.pkl.gz of these instructions."""
    return lambda folder: pickled(b"\x80\x04" + body + b".")(folder)  # not packed before it is needed


def parts_of_cifar(body: bytes) -> Make:
    """CIFAR-10's Python form, each part these instructions."""
    return every(*(file(f"cifar-10-batches-py/{name}", b"\x80\x02" + body + b".") for name in PARTS_OF_CIFAR))


def numbers(count: int) -> Iterable[int]:
    """Whole numbers of one hash."""
    return (number * COLLIDING for number in range(1, count + 1))


def long_number(number: int) -> bytes:
    """The instruction that puts a whole number on the stack."""
    data = number.to_bytes(12, "little")
    return b"\x8a\x0c" + data


def archive(members: Iterable[tuple[str, bytes]], extra: bytes = b"") -> bytes:
    """A .npz file of these members, as they are: names may be there twice."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the name that is there twice
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.extra = extra
            made.writestr(info, content)
    return stream.getvalue()


def table_of(count: int) -> bytes:
    """A .npz file whose table of members says so many, all of them one."""
    whole = archive([("x.npy", NPY_X), ("y.npy", npy_bytes(Y)), ("z", b"")])
    start, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    last = whole.rindex(b"PK\1\2")
    table = whole[start:end] + whole[last:end] * count
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, (count + 3) % 65536, (count + 3) % 65536, len(table), start, 0)
    return whole[:start] + table + tail


def npy_of(header: bytes) -> Make:
    """x.npy with this header."""
    return npy(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(960))


def toml(content: str) -> Make:
    """A configuration file."""
    return file("run.toml", content)


def with_header(change: Callable[[dict[str, Any]], str]) -> Make:
    """Every checkpoint with the header that `change` makes of the JSON in it, and a digest that is right."""

    def make(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        head = change(json.loads(data[8 : 8 + length])).encode()
        return seal(len(head).to_bytes(8, "little") + head + data[8 + length :])

    return checkpoints(make)


def with_document(change: Callable[[str], str]) -> Make:
    """Every checkpoint with the document that `change` makes of its text."""

    def header(found: dict[str, Any]) -> str:
        found["__metadata__"]["distsgd"] = change(found["__metadata__"]["distsgd"])
        return json.dumps(found)

    return with_header(header)


def more(entry: str) -> Callable[[str], str]:
    """The document's text with one more entry."""
    return lambda text: f"{{{entry},{text[1:]}"


def tensors(count: int) -> Make:
    """Every checkpoint with so many tensors more, none of which has an element."""

    def change(found: dict[str, Any]) -> str:
        end = max(entry["data_offsets"][1] for name, entry in found.items() if name != "__metadata__")
        one = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        return json.dumps(found | {f"parameters/a{number}": one for number in range(count)}, separators=(",", ":"))

    return with_header(change)


def renamed(entries: dict[str, Any]) -> Make:
    """Every checkpoint with one tensor described in another way."""

    def change(found: dict[str, Any]) -> str:
        name = next(name for name in found if name.startswith("parameters/"))
        found[name] = found[name] | entries
        return json.dumps(found)

    return with_header(change)


ZEROS = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R"
SAME_LIST = b"](" + b"K\1" * 100_000 + b"eq\0" + b"(" + b"h\0" * 8 + b"tq\1" + b"(" + b"h\1" * 8 + b"t"
EMPTY = gzip.compress(b"", mtime=0)

HOSTILE_DATA: dict[str, Case] = {
    "a pickle whose shape is a tuple of tuples": Case("a shape that isn't", PICKLE, pickle_of(array_of(
        shape=nested(200) + b"\x85"))),
    "a pickle whose dtype is a tuple of tuples": Case("an array of a tuple", PICKLE, pickle_of(array_of(nested(200)))),
    "a pickle whose byte order is a tuple of tuples": Case("without a byte order", PICKLE, pickle_of(
        b"cnumpy\ndtype\nX\2\0\0\0f4\x85R(K\3" + nested(200) + b"tb")),
    "a pickle whose key is a tuple of tuples": Case("a tuple where a name", PICKLE, pickle_of(
        b"}" + nested(200) + b"Ns")),
    "a part of CIFAR-10 whose key is a tuple of tuples": Case("a tuple where a name", CIFAR, parts_of_cifar(
        b"}(" + nested(200) + b"Nu")),
    "a part of CIFAR-10 whose label is a tuple of tuples": Case("a list where an array", CIFAR, parts_of_cifar(
        b"}(X\6\0\0\0labels](" + nested(200) + b"eu")),
    "a part of CIFAR-10 whose label is a number of a million bits": Case("more than 1024 bits", CIFAR, parts_of_cifar(
        b"}(X\6\0\0\0labels](\x8b" + struct.pack("<i", 125_000) + b"\x7f" * 125_000 + b"eX\4\0\0\0data"
        + ZEROS + b"(K\1(K\1M\0\x0ctcnumpy\ndtype\nX\2\0\0\0u1\x85R\x89B" + struct.pack("<i", 3072) + bytes(3072)
        + b"tbu")),
    "a pickle of 40,000 keys of one hash": Case("a int where a name", PICKLE, pickle_of(
        b"}(" + b"".join(long_number(number) + b"N" for number in numbers(40_000)) + b"u")),
    "a pickle of 40,000 memo indices of one hash": Case("a memo index", PICKLE, pickle_of(
        b"N" + b"".join(b"p%d\n" % number for number in numbers(40_000)))),
    "a pickle of 50,000 keys": Case("more than 100 keys", PICKLE, pickle_of(
        b"}(" + b"".join(b"\x8c\4%04xN" % number for number in range(50_000)) + b"u")),
    "a pickle of one long list in 64 places": Case("another structure", PICKLE, pickle_of(SAME_LIST)),
    "a pickle of one long list in more places": Case("where an array", PICKLE, pickle_of(
        SAME_LIST + b"q\2(" + b"h\2" * 8 + b"tq\3(" + b"h\3" * 8 + b"t")),
    "a pickle of a name without an end": Case("calls for 'aaa", PICKLE, pickle_of(b"c" + b"a" * 900_000)),
    "a pickle of numbers of 900,000 digits": Case("make it again", PICKLE, pickle_of(b"I" + b"9" * 900_000 + b"\n")),
    "a pickle of 200,000 tuples in each other": Case("where an array", PICKLE, pickle_of(b")" + b"\x85" * 200_000)),
    "gzip of 50,000 empty members": Case("at most 10000 members", MNIST, mnist(EMPTY * 50_000, suffix=".gz")),
    "gzip of 9,000 empty members": Case("header of 4 bytes", MNIST, mnist(EMPTY * 9_000, suffix=".gz")),
    "gzip of 900,000 zeros after its end": Case("zeros after them", MNIST, mnist(
        gzip.compress(IMAGES, mtime=0) + bytes(900_000), gzip.compress(LABELS), suffix=".gz")),
    "gzip of a name without an end": Case("reading it failed", MNIST, mnist(
        b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 900_000, suffix=".gz")),
    "an .npz table of 200,000 members": Case(
        "a table of members", DATA, lambda folder: file("data.npz", table_of(200_000))(folder)),
    "an .npz table of 2,000 equal members": Case("z is there twice", DATA, file("data.npz", table_of(2000))),
    "an .npz member that is there twice": Case("x is there twice", DATA, file("data.npz", archive(
        [("x.npy", NPY_X), ("y.npy", npy_bytes(Y)), ("x.npy", npy_bytes(X + 1))]))),
    "an .npz member by both names": Case("x is there twice", DATA, file("data.npz", archive(
        [("x.npy", NPY_X), ("y.npy", npy_bytes(Y)), ("x", npy_bytes(X + 1))]))),
    "an .npz with members of long descriptions": Case("a table of members of at most", DATA, file("data.npz", archive(
        [("x.npy", NPY_X), ("y.npy", npy_bytes(Y)), *((f"z{n}", b"") for n in range(5))],
        b"\7\7\0\0" * 16_000))),
    ".npy with a header of 9,000 brackets": Case("text that isn't one", NPY, npy_of(b"(" * 9000)),
    ".npy with a header of 9,000 signs": Case("text that isn't one", NPY, npy_of(b"-" * 9000 + b"1")),
    ".npy with a header of 4,000 sums": Case("text that isn't one", NPY, npy_of(b"1" + b"+1" * 4000)),
    ".npy with a length of 4,000 digits": Case("less than 2**63", NPY, npy_of(
        b"{'descr':'<f4','fortran_order':False,'shape':(" + b"9" * 4000 + b"," + b"9" * 4000 + b")}")),
    ".npy of 3,000 fields": Case("got dtype", NPY, npy_of(
        b"{'descr':'" + b"f4," * 3000 + b"f4','fortran_order':False,'shape':(1,)}")),
    ".npy of 4,000 axes": Case("the file has 9018", NPY, npy_of(
        b"{'descr':'<f4','fortran_order':False,'shape':(" + b"1," * 4000 + b")}")),
    "an archive whose parts are links": Case("data_batch_1.bin", CIFAR, lambda folder: _links(folder / CIFAR_NAME)),
    "to predict from a table of 200,000 members": Case("a table of members", "run data.npz -o o.npz", every(
        run(), lambda folder: file("data.npz", table_of(200_000))(folder)), 2, "predict"),
    "a folder of 5,000 arrays": Case("got x_a0", f"--dataset data {QUICK}", lambda folder: _many(folder / "data")),
}  # fmt: skip

HOSTILE_TOML: dict[str, Case] = {
    "TOML with a key of 120,000 parts": Case("a key or a text with", TOML, toml("a." * 120_000 + "a = 1")),
    "TOML with a quoted key of 60,000 parts": Case("a key or a text with", TOML, toml('"=".' * 60_000 + "a = 1")),
    "TOML with a table of 120,000 parts": Case("a key or a text with", TOML, toml("[" + "a." * 120_000 + "a]")),
    "TOML with 15,000 keys in a deep table": Case("a key or a text with", TOML, toml(
        "[" + "a." * 2000 + "a]\n" + "".join(f"k{number} = 1\n" for number in range(15_000)))),
    "TOML with a key of numbers": Case("a key or a text with", TOML, toml("0." * 120_000 + "0 = 1")),
    "TOML of 80,000 tables in each other": Case("not a TOML file", TOML, toml("a = " + "{a=" * 80_000)),
    "TOML of 30,000 tables": Case("unknown table", TOML, toml("".join(f"[t{number}]\n" for number in range(25_000)))),
    "TOML of 120,000 layers": Case("at most 1000 values", TOML, toml("hidden = [" + "1," * 120_000 + "]")),
    "TOML of a list in a number's place": Case("of 120000 values", TOML, toml("epochs = [" + "1," * 120_000 + "]")),
    "TOML of a number of a million bits": Case("a very long int", TOML, toml("epochs = 0x" + "f" * 240_000)),
    "TOML of units of 9,000 bits": Case("hidden: expected", TOML, toml("hidden = [0x" + "f" * 2250 + "]")),
    "TOML of a fraction of 240,000 digits": Case("expected a number", TOML, toml(
        "label_smoothing = '0." + "1" * 240_000 + "'")),
    "TOML of an interval of 5,000 digits": Case("checkpoint_every: expected", TOML, toml(
        f"checkpoint_every = '{'9' * 5000}'")),
    "TOML of a model of 40,000 layers": Case("expected at most", TOML, toml(f"model = '{'relu,' * 40_000}dense'")),
    "TOML of a model of 3,000 layers": Case("at most 1000 layers", TOML, toml(f"model = '{'relu,' * 3000}dense'")),
    "TOML of a rate of 15,000 digits": Case("model: expected dropout", TOML, toml(
        f"model = 'dropout {'1' * 15_000}x'")),
    "TOML of an initializer of blanks": Case("initializer: expected", TOML, toml(
        f"weight_initializer = 'a{' ' * 15_000}!'")),
    "TOML of a pattern of 240,000 brackets": Case("at most 20000 characters", TOML, toml(
        f"freeze = ['{'[' * 240_000}']")),
    "TOML of an option of 240,000 letters": Case("unknown option", TOML, toml("e" * 240_000 + " = 1")),
}  # fmt: skip

HOSTILE_RUNS: dict[str, Case] = {
    "checkpoints of 13,000 tensors more": Case("the checkpoint has a0", RESUME, run(tensors(13_000)), status=1),
    "to evaluate 13,000 tensors more": Case("the checkpoint has a0", EVALUATE, run(tensors(13_000)), 1, "evaluate"),
    "checkpoints of 100,000 tensors": Case("expected at most 50000", RESUME, run(tensors(100_000)), status=1),
    "to evaluate 100,000 tensors": Case("expected at most 50000", EVALUATE, run(tensors(100_000)), 1, "evaluate"),
    "checkpoints with an entry twice": Case("a name is there twice", RESUME, run(with_document(
        lambda text: text.replace('"step":', '"step":0,"step":', 1))), status=1),
    "checkpoints of 10,000 skipped minibatches without microbatches": Case("skipped minibatches", RESUME, run(
        with_document(lambda text: text.replace('"skipped":[]', '"skipped":[' + ",".join(
            f'{{"step":{n},"what":"gradient","microbatches":[1],"examples":[]}}' for n in range(10_000)) + "]"))),
        status=1),
    "checkpoints whose document is 100,000 lists in each other": Case("not a checkpoint", RESUME, run(with_document(
        more('"a":' + "[" * 100_000))), status=1),
    "checkpoints whose header is 100,000 lists in each other": Case("not a checkpoint", RESUME, run(with_header(
        lambda found: json.dumps(found)[:-1] + ',"a":' + "[" * 100_000)), status=1),
    "checkpoints with a number of 100,000 digits": Case("not a checkpoint", RESUME, run(with_document(
        more('"a":' + "9" * 100_000))), status=1),
    "checkpoints of a type that NumPy hasn't": Case("not a checkpoint", RESUME, run(renamed(
        {"dtype": "BF16", "shape": [1280]})), status=1),
    "checkpoints of a shape that no array has": Case("not a checkpoint", RESUME, run(renamed(
        {"shape": [0, 1 << 62, 1 << 62]})), status=1),
    "checkpoints of 100 axes": Case("not a checkpoint", RESUME, run(renamed({"shape": [1] * 100})), status=1),
    "checkpoints whose tensors overlap": Case("not a checkpoint", RESUME, run(renamed(
        {"shape": [1], "data_offsets": [0, 4]})), status=1),
    "to evaluate a model of 50,000 layers": Case("at most 1000 values", EVALUATE, run(with_document(
        lambda text: text.replace('"config":{', '"config":{"hidden":[' + "1," * 50_000 + "1],", 1)
        .replace('"hidden":[128,128],', "", 1))), 2, "evaluate"),
}  # fmt: skip


def _links(path: Path) -> None:
    """An archive whose files are links to files of this machine, symbolic and hard."""
    with tarfile.open(path, "w:gz") as made:
        for number, name in enumerate(PARTS_OF_CIFAR):
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            entry.type = tarfile.SYMTYPE if number % 2 else tarfile.LNKTYPE
            entry.linkname = "../../../../../../etc/passwd"
            made.addfile(entry)


def _many(folder: Path) -> None:
    folder.mkdir()
    for number in range(5000):
        (folder / f"x_a{number}.npy").touch()


HOSTILE = HOSTILE_DATA | HOSTILE_TOML | HOSTILE_RUNS
