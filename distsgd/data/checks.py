"""What training needs of loaded arrays, checked once and a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError, first_line
from distsgd.data.features import looked_at
from distsgd.data.targets import (
    TargetSummary,
    blocks,
    check_finite,
    check_labels,
    first,
    most_labels,
    sampled_rows,
)

if TYPE_CHECKING:
    from distsgd.data.sources.base import ArraySource

_CHECKED_AT_ONCE = 1 << 30
"""Bytes of a mapped file that are all read at the start."""


def check_arrays(
    name: str,
    x: Array,
    y: Array,
    weights: Array | None = None,
    *,
    num_classes: int | None = None,
    values: bool = False,
    dtype: np.dtype[Any] | None = None,
) -> int | None:
    """Checks that examples can be trained on.

    Parameters
    ----------
    name : str
        The data's name in messages.
    x : array
        Inputs (n, features…), finite.
    y : array
        Integer labels (n,) or (n, 1), from 0 to `num_classes` - 1; or finite floats (n,) or (n, outputs).
    weights : array, optional
        Sample weights (n,), finite, not negative, not all 0.
    num_classes : int, optional
        The number of classes; None for the greatest label + 1.
    values : bool, default False
        Whether integer targets are values, as floats are, and not labels.
    dtype : dtype, optional
        The model's, where it is known: what it can't hold isn't finite either.

    Returns
    -------
    int or None
        The number of classes, None for values.

    Raises
    ------
    DataError
        With the first example that is wrong, counted from 0.
    """
    return checked(name, x, y, weights, num_classes=num_classes, values=values, dtype=dtype)[0]


def checked(
    name: str,
    x: Array,
    y: Array,
    weights: Array | None,
    *,
    num_classes: int | None,
    values: bool,
    dtype: np.dtype[Any] | None,
    later: bool = False,
) -> tuple[int | None, TargetSummary]:
    """`check_arrays`, with what it has found of the targets; of inputs that are checked `later`, here a sample."""
    check_dtype(f"{name}: inputs", x.dtype)
    if x.size == 0:
        raise DataError(f"{name}: expected at least one example and one feature, got inputs of shape {x.shape}")
    is_float = check_targets(f"{name}: targets", y, len(x))
    if weights is not None:
        check_weights(f"{name}: weights", weights, len(x))
    if not stays_in_files(x):  # else they are checked as they are read
        _check_inputs(f"{name}: inputs", x, dtype, later)
    if weights is not None:
        _check_weights(f"{name}: weights", weights, dtype)
    targets = TargetSummary.of(f"{name}: targets", y, dtype)
    return None if is_float or values else check_labels(name, y, num_classes, targets), targets


def is_checked_later(x: Array) -> bool:
    """Whether inputs are checked as they are first read: to read all of a large file takes as long as an epoch."""
    return is_mapped(x) and not stays_in_files(x) and x.nbytes > _CHECKED_AT_ONCE


def check_rows(name: str, dtype: np.dtype[Any]) -> Callable[[Array, Array], None]:
    """What `Examples.check` is: DataError with the first example of gathered inputs that holds what `check_finite`
    refuses, called by its number in the whole array.

    A sum of squares is finite and small where all numbers are, and takes a tenth of the time of a look at each.
    """
    largest = float(np.finfo(dtype).max)

    def check(x: Array, rows: Array) -> None:
        for field in x.dtype.names or ("",):
            part, where = (x[field], f"{name}: input {field}") if field else (x, f"{name}: inputs")
            if part.dtype.kind != "f":
                continue
            flat = part.reshape(-1)
            with np.errstate(all="ignore"):
                squares = float(np.dot(flat, flat)) if part.itemsize > 2 else np.inf
            if not squares < min(largest, 1e300):
                check_finite(where, part, dtype, rows)

    return check


def check_dtype(where: str, dtype: np.dtype[Any]) -> None:
    """DataError for what isn't numbers."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise DataError(f"{where}: expected integers or floats of at most 64 bits, got dtype {dtype}; convert them")


def check_targets(where: str, y: Array | ArraySource, examples: int) -> bool:
    """Whether targets of so many examples are floats, and not labels; DataError where they can be neither."""
    check_dtype(where, y.dtype)
    _check_length(where, y, examples)
    is_float = y.dtype.kind == "f"
    if is_float and (len(y.shape) > 2 or 0 in y.shape):
        raise DataError(f"{where}: expected float targets of shape (n,) or (n, outputs), got {y.shape}; reshape them")
    if not is_float and len(y.shape) != 1 and y.shape[1:] != (1,):
        raise DataError(
            f"{where}: expected integer labels of shape (n,), got {y.shape}; give one label an example "
            "(y.argmax(axis=1) of one-hot rows), or floats (y.astype(float)), with --loss binary-cross-entropy for "
            "several answers, without for values"
        )
    return is_float


def check_weights(where: str, weights: Array | ArraySource, examples: int) -> None:
    """DataError for what can't be weights of so many examples."""
    check_dtype(where, weights.dtype)
    _check_length(where, weights, examples)
    if len(weights.shape) != 1 and weights.shape[1:] != (1,):
        raise DataError(f"{where}: expected one weight an example, shape (n,), got {weights.shape}; reshape them")


def _check_length(where: str, array: Array | ArraySource, examples: int) -> None:
    if array.shape[:1] != (examples,):
        got = array.shape[0] if array.shape else "a single number"
        raise DataError(f"{where}: expected {examples} entries, one an example, got {got}; make both equally long")


def _check_inputs(where: str, x: Array, dtype: np.dtype[Any] | None, later: bool) -> None:
    if not later:
        check_finite(where, x, dtype)
        return
    rows = np.union1d(looked_at(x), sampled_rows(len(x)))
    with _each_alone(x):
        some = x[rows]
    check_finite(where, some, dtype, rows)


@contextmanager
def _each_alone(x: Array) -> Iterator[None]:
    """Inside, rows of a mapped file are read without what is around them: some systems read megabytes with each."""
    import mmap

    memory: object = x
    while isinstance(memory, np.ndarray):
        memory = memory.base
    if not isinstance(memory, mmap.mmap) or not hasattr(mmap, "MADV_RANDOM"):
        yield
        return
    memory.madvise(mmap.MADV_RANDOM)
    try:
        yield
    finally:
        memory.madvise(mmap.MADV_NORMAL)


def _check_weights(where: str, weights: Array, dtype: np.dtype[Any] | None) -> None:
    check_finite(where, weights, dtype)
    found = first(weights, lambda block: block < 0)
    if found is not None:
        raise DataError(f"{where}: expected none below 0, example {found[0]} has {found[1]}; correct it")
    if not any((block > 0).any() for _, block in blocks(weights)):
        raise DataError(f"{where}: expected at least one above 0, all are 0; correct them, or remove them")


def _no_array(given: Any) -> str | None:
    """What to do about a value that NumPy would take for something else than its numbers."""
    if isinstance(given, Mapping):
        return "stack its columns: np.column_stack(list(data.values()))"
    if isinstance(given, set | frozenset | Iterator):
        return "make it a list, and that an array: np.array(list(data))"
    if hasattr(given, "toarray") and hasattr(given, "nnz"):  # SciPy's sparse matrices
        return "distsgd takes dense arrays alone: data.toarray()"
    return None


def as_array(given: Any, name: str, of: str = "fit") -> Array:
    """In the order of rows: from any other order NumPy would copy the whole set for each minibatch."""
    where = f"{of}: {name}"
    if (remedy := _no_array(given)) is not None:
        raise DataError(f"{where}: expected an array, got {type(given).__name__}; {remedy}")
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        masked = int(np.count_nonzero(np.ma.getmaskarray(given)))
        raise DataError(
            f"{where} is an array of which {masked:,} values are masked, and distsgd takes no masks; leave these "
            "examples out, or fill them in: array.filled(value)"
        )
    try:
        found = np.asarray(given, order="C")
    except (ValueError, TypeError, RuntimeError) as error:  # such as rows of different lengths, or torch's reasons
        cause = error if error.__traceback__ and error.__traceback__.tb_next else None  # of an __array__ in Python
        remedy = "give an array of numbers" if isinstance(error, RuntimeError) else "give rows of one length"
        raise DataError(f"{where} can't become an array ({first_line(error)}); {remedy}") from cause
    if found.dtype.kind in "US" or (found.dtype == object and found.size and isinstance(found.flat[0], str)):
        remedy = "x.astype(float) reads numbers, and of words each makes a column of 0 and 1"
        if name.endswith("y"):
            remedy = "names, y = np.unique(y, return_inverse=True) numbers classes"
        raise DataError(f"{where} holds text, which is no number; {remedy}")
    if found.dtype == object and found.ndim:
        odd = next((type(one).__name__ for one in found.flat if not isinstance(one, int | float | np.number)), "")
        what = f"such as {odd}" if odd else "which may be numbers of any size"
        raise DataError(
            f"{where} is an array of Python objects, {what}; replace or remove what is no number, and give "
            "array.astype(float)"
        )
    if found.dtype != object:
        check_dtype(where, found.dtype)
    return found


def stored_array(given: Any, name: str, of: str = "fit") -> Array:
    """`as_array` for a model that takes inputs as they are stored: several by name are packed into one structured
    array, and so is a structured array with bytes between its fields, which may hold anything."""
    if isinstance(given, np.ndarray) and given.dtype.names is not None:
        if sum(given.dtype[key].itemsize for key in given.dtype.names) == given.dtype.itemsize:
            return np.ascontiguousarray(given)
        given = {key: given[key] for key in given.dtype.names}
    if not isinstance(given, Mapping):
        return as_array(given, name, of)
    from distsgd.data.examples import packed

    return packed({str(key): as_array(array, f"{name} {key}", of) for key, array in given.items()})


def check_stored(
    name: str,
    x: Array,
    y: Array,
    weights: Array | None,
    *,
    num_classes: int | None,
    dtype: np.dtype[Any],
    later: bool = False,
) -> tuple[int | None, TargetSummary]:
    """`checked` for a model that takes inputs as they are stored, and targets of any shape.

    There is a number of classes where each target is a single integer, from 0 on, that can be a label.
    """
    if not len(x):
        raise DataError(f"{name}: expected at least one example, got inputs of shape {x.shape}")
    for field in x.dtype.names or ("",):
        part, where = (x[field], f"{name}: input {field}") if field else (x, f"{name}: inputs")
        check_dtype(where, part.dtype)
        _check_inputs(where, part, dtype, later)
    check_dtype(f"{name}: targets", y.dtype)
    _check_length(f"{name}: targets", y, len(x))
    targets = TargetSummary.of(f"{name}: targets", y, dtype)
    if weights is not None:
        check_weights(f"{name}: weights", weights, len(x))
        _check_weights(f"{name}: weights", weights, dtype)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        return None, targets
    if num_classes is None and (targets.low < 0 or targets.high >= most_labels(len(y))):
        return None, targets
    return check_labels(name, y, num_classes, targets), targets


@contextmanager
def read_only(*sets: tuple[Any, ...] | None) -> Iterator[None]:
    """Until the block ends, these arrays can't be written to by these names: they are used where they lie.

    Those that several blocks hold at the same time become writeable with the first that ends.
    """
    given = [one for part in sets if isinstance(part, tuple | list) for one in part if isinstance(one, np.ndarray)]
    arrays = [array for array in given if array.flags.writeable and _is_numpys(array)]
    for array in arrays:
        array.flags.writeable = False
    try:
        yield
    finally:
        for array in (*arrays, *arrays):  # twice, for one may be a view of another
            with suppress(ValueError):
                array.flags.writeable = True


def _is_numpys(array: Array) -> bool:
    """Whether the memory is NumPy's own, or a mapped file's: an array of another library's stays as it is made."""
    return is_mapped(array) or _whole(array).base is None


def is_mapped(array: Array) -> bool:
    """Whether the array, or what it is a view of, is a file that is mapped into memory, or stays in files."""
    return stays_in_files(array) or isinstance(_whole(array), np.memmap)


def stays_in_files(array: Array) -> bool:
    """Whether rows are read from files when they are asked for, as those of `data.stored` are."""
    return hasattr(array, "files")


def _whole(array: Array) -> Array:
    """What the array is a view of, or itself; of mapped files the map."""
    while isinstance(array.base, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    return array
