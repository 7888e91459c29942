"""distsgd data FILE: what is in a data file, and the command that trains on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from distsgd.cli.commands import run_command
from distsgd.core.options import REQUIRED, option
from distsgd.core.output import say
from distsgd.data.columns import Missing

if TYPE_CHECKING:
    from pathlib import Path

    from distsgd.data.sources.base import DataSource, ReadOptions
    from distsgd.data.sources.look import Look, Role
    from distsgd.data.sources.summary import Summary
    from distsgd.parallel import Communicator

_SHOWN = 40
"""Arrays or columns that are listed."""
_VALUES, _CLASSES = 4, 10
"""Different values that are listed of a column of many, and of one that has no more."""
_NAME = 24
"""Columns of a name on the terminal."""


@dataclass(frozen=True)
class Options:
    """Print what is in a data file: arrays or columns, ranges, missing values, classes, and what training would take.

    It reads the file once, block by block, however large it is. --write makes a folder of .npy files of it, which
    training maps without reading it whole.
    """

    # fmt: off
    file: str = option(REQUIRED, "A file or folder, as --dataset of training takes it, or a name.",
        positional=True, path=True)
    x: tuple[str, ...] = option((), "The inputs, as the option --x of training names them.")
    y: tuple[str, ...] = option((), "The targets, as --y of training.")
    weights: str | None = option(None, "The sample weights, as --weights of training, '' for none.", empty=True)
    axis: str = option("0", "The axis of examples, as --axis of training.")
    missing: Missing = option("refuse", "As --missing of training.", choices=get_args(Missing))
    classes: tuple[str, ...] = option((), "The names of classes, as --classes of training.", most=100_000)
    data_dir: str | None = option(None, "Where the files of data sets with a name are.", path=True)
    write: str | None = option(None, "A new folder: x.npy, y.npy, weights.npy and columns.json.", path=True)
    # fmt: on


def main() -> int:
    """The command; returns the exit status."""
    return run_command(show)


def show(communicator: Communicator, arguments: Sequence[str]) -> int:
    """Looks, prints and writes on rank 0. Collective."""
    from distsgd.cli.command_line import parse_arguments

    def act() -> None:
        options = parse_arguments(Options, arguments, "distsgd data")
        progressed = communicator.heartbeat.progressed
        if options.write is not None:
            say(f"{options.file} is now in {written(options, options.write, progressed)}")
            return
        for line in lines_of(options, looked(options, progressed)):
            say(line)

    communicator.on_root(act)
    return 0


def asked(options: Options) -> ReadOptions:
    """What the options ask of the file."""
    from distsgd.data.sources.base import ReadOptions
    from distsgd.run.config_checks import number_of_classes

    number_of_classes(options.classes)
    names = options.classes if len(options.classes) > 1 else ()
    return ReadOptions(options.x, options.y, options.weights, axis=options.axis, missing=options.missing, classes=names)


def looked(options: Options, progressed: Callable[[], object]) -> Look:
    """The look at the file, or at the data set of this name."""
    from distsgd.data.named.datasets import DATASETS
    from distsgd.data.sources.look import look_at, look_at_arrays

    if options.file in DATASETS:
        return look_at_arrays(opened(options), f"the data set {options.file}", progressed)
    return look_at(options.file, asked(options), progressed)


def opened(options: Options) -> DataSource:
    """The data set that training would take."""
    from distsgd.core.errors import ConfigurationError
    from distsgd.data.named.datasets import DATASETS, open_with
    from distsgd.data.sources.base import OpenOptions

    if options.data_dir is not None and options.file not in DATASETS:
        raise ConfigurationError(f"data_dir: is for named data sets, and {options.file} is a path; leave it out")
    return open_with(options.file, OpenOptions(options.data_dir), asked(options))


def written(options: Options, folder: str, progressed: Callable[[], object]) -> Path:
    """Writes the data set; the folder's path."""
    from distsgd.data.sources.written import write_folder

    return write_folder(opened(options), folder, progressed)


def lines_of(options: Options, look: Look) -> Iterator[str]:
    """What is printed of a look."""
    from distsgd.core.errors import visible
    from distsgd.core.output import field, field_of_path

    yield from field_of_path("file", look.where)
    together = f", {look.chunk:,} stored together" if look.chunk > 1 else ""
    yield from field("format", f"{look.format}{together}")
    yield from table(look.columns)
    for role, one in look.roles.items():
        yield from field(role.removesuffix("_train"), words(one, look.columns))
    if look.problem:
        yield from field("training", visible(look.problem))
    else:
        yield from field("memory", memory(look))
        yield f"command    {visible(command(options, look))}"  # in one line, to be copied
    for note in (*lacking(options, look), *look.notes):
        yield from field("note", visible(note))


def lacking(options: Options, look: Look) -> Iterator[str]:
    """What to do about missing values of what training would take."""
    used = {name for role in look.roles.values() for name in role.names}
    found = [one for one in look.columns if one.missing and one.name in used]
    if found and options.missing == "refuse":
        more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
        many = "1 value is" if found[0].missing == 1 else f"{found[0].missing:,} values are"
        yield f"{found[0].name}{more}: {many} missing; give --missing mean, zero or drop"


def table(columns: Sequence[Summary]) -> Iterator[str]:
    """A line for each array or column."""
    from distsgd.core.errors import visible
    from distsgd.core.output import shortened

    names = [shortened(visible(one.name), _NAME) for one in columns[:_SHOWN]]
    kinds = [shortened(visible(one.kind), _NAME) for one in columns[:_SHOWN]]
    wide, wider = max(map(len, ["name", *names])), max(map(len, ["type", *kinds]))
    yield f"{'name':{wide}}  {'type':{wider}}  {'missing':>9}  values"
    for one, name, kind in zip(columns, names, kinds, strict=False):
        yield f"{name:{wide}}  {kind:{wider}}  {one.missing or '-':>9}  {values(one)}"
    if len(columns) > _SHOWN:
        yield f"and {len(columns) - _SHOWN:,} more"


def values(one: Summary) -> str:
    """The range of numbers, and how often there is each of few values."""
    from distsgd.core.errors import visible
    from distsgd.core.output import shortened

    ends = f"{_number(one.low)} to {_number(one.high)}" if one.low <= one.high else ""
    if not one.counts:
        others = "none" if one.missing else "-"  # of dates and the like no range is known
        return ends or ("more than 1,000 texts" if one.kind == "text" and one.counts is None else others)
    if len(one.counts) > _CLASSES:
        return f"{ends or _texts(one.counts)}, {len(one.counts):,} different"
    counted = (f"{shortened(visible(value), _NAME)}: {count:,}" for value, count in _sorted(one.counts))
    return ", ".join(counted)


def _sorted(counts: dict[str, int]) -> list[tuple[str, int]]:
    """By value: whole numbers by their size."""
    return sorted(counts.items(), key=lambda one: (int(one[0]) if one[0].lstrip("-").isdecimal() else 0, one[0]))


def _texts(counts: dict[str, int]) -> str:
    from distsgd.core.errors import visible
    from distsgd.core.output import shortened

    return ", ".join(shortened(visible(value), _NAME) for value, _ in _sorted(counts)[:_VALUES]) + ", …"


def _number(value: float) -> str:
    from distsgd.core.output import number

    return f"{int(value)}" if value.is_integer() and abs(value) < 1e15 else number(value)


def words(role: Role, columns: Sequence[Summary]) -> str:
    """What an array of the data set is made of."""
    from distsgd.core.errors import visible

    names = [visible(name) for name in role.names]
    listed = ", ".join(names[:_VALUES]) + (f" and {len(names) - _VALUES:,} more" if len(names) > _VALUES else "")
    each = " x ".join(map(str, role.shape[1:])) or "one"
    many = "example" if role.shape[0] == 1 else "examples"
    shape = f"{role.shape[0]:,} {many} of {each} {'number' if each in ('one', '1') else 'numbers'}, {role.dtype.name}"
    by_name = {one.name: one for one in columns}
    single = by_name.get(role.names[0]) if len(role.names) == 1 else None
    if role.shape[1:] == () and role.dtype.kind == "i" and single is not None and single.counts:
        shape = f"{role.shape[0]:,} labels, {len(single.counts)} different"
    return f"{listed}: {shape}"


def memory(look: Look) -> str:
    """What the arrays take in memory."""
    from math import prod

    stored = sum(prod(one.shape) * one.dtype.itemsize for one in look.roles.values())
    single = sum(4 * prod(one.shape) for one in look.roles.values())
    return f"{_bytes(stored)} as stored, {_bytes(single)} as float32"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def command(options: Options, look: Look) -> str:
    """The command that trains on the file."""
    import shlex
    from math import prod

    from distsgd.core.runtime import available_memory
    from distsgd.run.config import OPTIONS

    parts = ["distsgd", "train", "--dataset", options.file]
    for name in ("x", "y", "weights", "axis", "missing", "classes", "data_dir"):
        given = getattr(options, name)
        if given != OPTIONS[name].default:
            parts += [OPTIONS[name].flag, *((given,) if isinstance(given, str) else given)]
    x, free = look.roles["x_train"], available_memory()
    if free is not None and prod(x.shape) * x.dtype.itemsize > free / 2:
        parts += ["--shuffle-buffer", "256MB"]
    return shlex.join(parts)
