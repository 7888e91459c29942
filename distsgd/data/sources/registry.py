"""File formats: which files each is for, and the module that opens them.

A new format is one module with a function `open_source(path, options)`, and one line in FORMATS; one of a table has
`open_table(path, options)` besides.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from glob import escape, iglob
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from distsgd.core.errors import ConfigurationError, DataError, pip_install
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions
from distsgd.data.sources.streams import absolute, reading

if TYPE_CHECKING:
    from distsgd.data.sources.tables.table import Table


@dataclass(frozen=True)
class Format:
    """A file format.

    Parameters
    ----------
    name : str
        For messages.
    suffixes : tuple of str
        With what names of its files end.
    module : str
        Whose `open_source(path, options)` returns a `DataSource`, from headers alone; imported when it is used.
    inside : tuple of str
        Patterns of names that only a folder has which is a data set of this format; those with / of what is deeper.
    takes : tuple of str
        The fields of `ReadOptions` that it takes; others are refused.
    package, extra : str
        The package that reads it, and the extra of distsgd that installs it; empty for none.
    is_table : bool
        Whether its files hold a table, which `open_table(path, options)` of the module returns.
    agrees : bool
        Whether `agreed(sources, options)` of the module says what is asked of files that are one data set.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    inside: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    package: str = ""
    extra: str = ""
    is_table: bool = False
    agrees: bool = False

    def check(self, path: str, options: ReadOptions) -> None:
        """Raises ConfigurationError for what the format doesn't take, and where no package is there that reads it."""
        check_taken(f"{self.name}, as {path} is", options, self.takes)
        if self.package and find_spec(self.package) is None:
            raise where_missing(f"{path}: {self.name}", self.package, self.extra)

    def open(self, path: str, options: ReadOptions) -> DataSource:
        """The data set at an absolute path. Raises DataError where it can't be read, and ConfigurationError as
        `check` does."""
        self.check(path, options)
        found: DataSource = import_module(self.module).open_source(path, options)
        return found

    def open_table(self, path: str, options: ReadOptions) -> Table:
        """The table at an absolute path, by its header. Raises DataError where it can't be read, and where files of
        this format hold no table."""
        if not self.is_table:
            raise DataError(f"{path}: expected a table: a CSV, Parquet or Feather file; it holds arrays")
        found: Table = import_module(self.module).open_table(path, options)
        return found


_FOR_ALL = ("targets", "streamed", "columns", "classes", "listed")
"""Fields of ReadOptions that no user gives, or that take effect whatever the format is."""


def check_taken(what: str, options: ReadOptions, takes: Collection[str] = ()) -> None:
    """Raises ConfigurationError for the first option that would change nothing for `what`, which takes these alone."""
    for field in fields(ReadOptions):
        if field.name in (*takes, *_FOR_ALL) or getattr(options, field.name) == field.default:
            continue
        raise ConfigurationError(f"{field.name}: would change nothing for {what}; leave it out")


def _any_case(ending: str) -> str:
    """A pattern of a name's ending, in small letters or capitals."""
    return "".join(f"[{letter}{letter.upper()}]" for letter in ending)


_HERE = __name__.rpartition(".")[0]
_ARRAYS = ("x", "y", "weights", "axis", "missing")
"""Fields of ReadOptions that a file of arrays by name takes."""
_CSV = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_TABLES = ("x", "y", "weights", "group", "missing", "keep")
_PARQUET = f"{_HERE}.tables.parquet"
_ZARR = ("zarr.json", ".zarray", ".zgroup")
_IMAGES = tuple(
    f"{f}*.{_any_case(s)}" for f in ("", "*/", "*/*/") for s in ("png", "jpg", "jpeg", "bmp", "ppm", "pgm", "webp")
)
FORMATS: tuple[Format, ...] = (
    Format(
        "a file of NumPy",
        (".npz", ".npy"),
        f"{_HERE}.arrays.numpy_files",
        ("*." + _any_case("npy"),),
        ("x", "y", "weights", "missing"),
    ),
    Format("an HDF5 file", (".h5", ".hdf5", ".nxs"), f"{_HERE}.arrays.hdf5", (), _ARRAYS, "h5py", "hdf5"),
    Format("a NetCDF file", (".nc", ".nc4"), f"{_HERE}.arrays.netcdf", (), _ARRAYS, "h5py", "netcdf"),
    Format("a Zarr folder", (".zarr",), f"{_HERE}.arrays.zarr_arrays", _ZARR, _ARRAYS, "zarr", "zarr"),
    Format("a CSV file", _CSV, f"{_HERE}.tables.csv_table", (), _TABLES, "pyarrow", "tables", True),
    Format("a Parquet file", (".parquet", ".pq"), _PARQUET, (), _TABLES, "pyarrow", "tables", True),
    Format("a file of Arrow", (".feather", ".arrow"), _PARQUET, (), _TABLES, "pyarrow", "tables", True),
    Format("a LIBSVM file", (".svm", ".libsvm", ".svmlight"), f"{_HERE}.arrays.libsvm", agrees=True),
    Format("a folder of images", (), f"{_HERE}.arrays.images", _IMAGES, (), "PIL", "images"),
    Format("a pickle", (".pkl.gz", ".pkl"), f"{_HERE}.arrays.pickled"),
)


def where_missing(what: str, package: str, extra: str) -> ConfigurationError:
    """The error that says how to install the package that `what` is read by."""
    return ConfigurationError(f"{what} is read by {package}, which is not installed; {pip_install(extra)}")


def looks_like_path(text: str) -> bool:
    """Whether this means a file or folder, not a name."""
    return os.sep in text or text.lower().endswith(_suffixes()) or os.path.exists(text)


def _suffixes() -> tuple[str, ...]:
    return tuple(suffix for one in FORMATS for suffix in one.suffixes)


def format_of(path: str) -> Format:
    """The format of a file or folder that is there, by its name, or by the names in it. Raises DataError."""
    if os.path.isdir(path):
        return _format_of_folder(path)
    ends = [(len(suffix), one) for one in FORMATS for suffix in one.suffixes if path.lower().endswith(suffix)]
    if not ends:
        raise DataError(
            f"{path}: expected a folder or a file ending in {', '.join(_suffixes())}; export a table as CSV or "
            "Parquet, and save arrays with numpy.savez"
        )
    return max(ends, key=lambda found: found[0])[1]


def _format_of_folder(path: str) -> Format:
    try:
        names = os.listdir(path)
    except OSError as problem:
        raise DataError(f"{path}: expected a readable folder ({problem.strerror}); check its permissions") from None
    return _format_inside(path, names, FORMATS) or FORMATS[0]  # which says what it expects in a folder


def _format_inside(path: str, names: Sequence[str], formats: Iterable[Format]) -> Format | None:
    """The one of these formats whose data set is a folder with these names in it; None for any other."""
    for one in formats:
        for pattern in one.inside:
            if "/" not in pattern:
                if any(fnmatchcase(name, pattern) for name in names):
                    return one
            elif next(iglob(os.path.join(escape(path), pattern)), None) is not None:
                return one
    return None


def _files_in(folder: str) -> list[str]:
    """The paths of the data files in a folder that isn't one data set itself, sorted; none where there are none."""
    with reading(folder):
        names = sorted(os.listdir(folder))
    if _format_inside(folder, names, (one for one in FORMATS if one.suffixes)) is not None:
        return []
    return [os.path.join(folder, name) for name in names if name.lower().endswith(_suffixes()) and name[0] not in "._"]


def _open_several(where: str, paths: Sequence[str], options: ReadOptions) -> DataSource:
    """The files of one format as one data set. Raises DataError where they have several."""
    from distsgd.data.sources.shards import check_paths, open_shards

    formats = {path: format_of(existing(path)) for path in paths}
    for path, found in formats.items():
        if found is not formats[paths[0]]:
            raise DataError(
                f"{where}: expected files of one format, {os.path.basename(paths[0])} is {formats[paths[0]].name}, "
                f"{os.path.basename(path)} is {found.name}; name those that belong together"
            )
    one = formats[paths[0]]
    one.check(paths[0], options)
    if not one.is_table:
        agreed = import_module(one.module).agreed if one.agrees else None
        return open_shards(where, paths, options, one.open, agreed)
    from distsgd.data.sources.tables.sharded_table import ShardedTable
    from distsgd.data.sources.tables.table import table_source

    check_paths(where, paths)
    return table_source(ShardedTable.of(where, [one.open_table(path, options) for path in paths]), options)


def existing(path: str) -> str:
    """This path. Raises DataError where there is nothing."""
    if not os.path.exists(path):
        raise DataError(f"{path}: expected a data file or folder, there is none; check the path")
    return path


def open_path(path: str | os.PathLike[str], options: ReadOptions | None = None) -> DataSource:
    """The data set in a file or folder, described by its headers; DataError where it can't be one.

    Several files of one format, which a pattern, a folder or names with commas between mean, are one data set.
    """
    asked, several = options or ReadOptions(), files_of(path)
    where = absolute(path)
    if several:
        return _open_several(where, several, asked)
    return format_of(existing(where)).open(where, asked)


def open_table(path: str | os.PathLike[str]) -> Table:
    """The table in a CSV, Parquet or Feather file, for a look at it: its rows are -1 of a CSV file before a pass.

    Raises DataError where there is none.
    """
    where = absolute(path)
    return format_of(where).open_table(where, ReadOptions(streamed=True))


def files_of(path: str | os.PathLike[str]) -> list[str]:
    """The absolute paths of the files that are one data set together, where this means several; none of a single file,
    and of a folder that is one data set itself. Raises DataError."""
    where = absolute(path)
    if os.path.isdir(where):
        return _files_in(where)
    if os.path.exists(where):
        return []
    from distsgd.data.sources.shards import paths_of

    return paths_of(os.fspath(path))


def open_paths(paths: Sequence[str | os.PathLike[str]], options: ReadOptions | None = None) -> DataSource:
    """The data set in these files of one format, in this order. Raises DataError."""
    several = [absolute(path) for path in paths]
    if not several:
        raise DataError("expected the paths of data files, got none; name at least one")
    name = several[0] if len(several) == 1 else f"{several[0]} and {len(several) - 1} more"
    return _open_several(name, several, options or ReadOptions())


def open_inputs(path: str | os.PathLike[str], options: ReadOptions | None = None) -> ArraySource:
    """The inputs alone of a file, of which there may be none. Raises DataError where it has no inputs."""
    return open_path(path, replace(options or ReadOptions(), targets=False)).arrays["x_train"]
