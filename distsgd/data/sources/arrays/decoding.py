"""Values as files of measurements store them: packed with a scale and an offset, with a number for what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError

_RANGES = ("valid_range", "valid_min", "valid_max")
ATTRIBUTES = ("_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned", *_RANGES)
NETCDF_FILL = 9.969209968386869e36
"""What the NetCDF library puts where floats were never written."""


@dataclass(frozen=True)
class Decoding:
    """How stored numbers become values: stored · scale + offset, NaN where the stored number is one of `absent`.

    Parameters
    ----------
    dtype : dtype
        Of the values. Whole numbers that aren't scaled may stay so; then what is absent is still in them.
    stored : dtype
        As which the stored numbers are looked at: of the same size, perhaps without a sign.
    absent : tuple of float
        The stored numbers that stand for a missing value.
    scale, offset : float
        1 and 0 for none.
    low, high : float
        The least and the largest number that isn't missing: of stored numbers, or of values where they are `unpacked`.
        Whole numbers that stay so become the last of `absent` beyond.
    unpacked : bool
        Which of both.

    References
    ----------
    Climate and Forecast Metadata Conventions, chapter 8.1 (packed data) and 2.5.1 (missing data).
    """

    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    absent: tuple[float, ...] = ()
    scale: float = 1.0
    offset: float = 0.0
    low: float = -inf
    high: float = inf
    unpacked: bool = False

    def into(self, raw: Array, out: Array) -> None:
        """Overwrites `out` with the values of stored numbers."""
        raw = raw.view(self.stored)
        np.copyto(out, raw, casting="unsafe")
        if self.scale != 1.0:
            out *= out.dtype.type(self.scale)
        if self.offset != 0.0:
            out += out.dtype.type(self.offset)
        if self.dtype.kind == "f":
            for number in self.absent:
                out[raw == self.stored.type(number)] = np.nan
        if self.low > -inf or self.high < inf:
            values = out if self.unpacked else raw
            with np.errstate(invalid="ignore"):
                out[(values < self.low) | (values > self.high)] = np.nan if self.dtype.kind == "f" else self.absent[-1]


def decoding(where: str, dtype: np.dtype[Any], attributes: Mapping[str, Any], *, whole: bool) -> Decoding | None:
    """How to decode an array with these attributes; None where it is stored as it is.

    Parameters
    ----------
    where : str
        The array, for messages.
    dtype : dtype
        As it is stored.
    attributes : mapping of str to object
        Those of ATTRIBUTES that it has.
    whole : bool
        Whether whole numbers that aren't scaled stay so, as labels do. Else they become floats where they may be
        missing, which whole numbers can't be: float32 of at most 16 bits, else float64.

    Raises
    ------
    DataError
        Where an attribute is no number.
    """
    scale, offset = _number(where, "scale_factor", attributes), _number(where, "add_offset", attributes)
    stored, native = dtype.newbyteorder("="), dtype.newbyteorder("=")
    if str(attributes.get("_Unsigned", "")).strip("b'\"").lower() == "true" and dtype.kind == "i":
        stored = np.dtype(f"u{dtype.itemsize}")
    absent, (low, high, is_float) = _absent(where, stored, attributes), _range(where, stored, attributes)
    beyond = low > -inf or high < inf
    if scale is None and offset is None:
        if native.kind == "f":
            return Decoding(native, stored, absent, low=low, high=high) if absent or beyond else None
        if whole and beyond:
            limits = np.iinfo(stored)
            absent = (*absent, float(limits.min if limits.min < low else limits.max))
        if whole or not (absent or beyond):
            return Decoding(stored, stored, absent, low=low, high=high) if absent or stored != native else None
        return Decoding(_float_of(stored), stored, absent, low=low, high=high)
    given = [one for one in (scale, offset) if one is not None]
    narrow = all(one.dtype == np.float32 for one in given) and _float_of(stored) == np.float32
    values = np.dtype(np.float32 if narrow else np.float64)
    factor = 1.0 if scale is None else float(scale)
    unpacked = is_float and stored.kind != "f"  # as the NetCDF users' guide says
    return Decoding(values, stored, absent, factor, 0.0 if offset is None else float(offset), low, high, unpacked)


def never_written(found: Decoding | None, dtype: np.dtype[Any]) -> Decoding | None:
    """This decoding, with the number that the NetCDF library puts where no floats were written."""
    native = dtype.newbyteorder("=")
    if native.kind != "f" or native.itemsize < 4 or (found is not None and found.absent):
        return found
    return replace(found or Decoding(native, native), absent=(float(native.type(NETCDF_FILL)),))


def _float_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The float type that holds these numbers exactly, but for whole numbers beyond 2 ** 53."""
    narrow = dtype.itemsize <= (4 if dtype.kind == "f" else 2)
    return np.dtype(np.float32 if narrow else np.float64)


def _absent(where: str, stored: np.dtype[Any], attributes: Mapping[str, Any]) -> tuple[float, ...]:
    """The stored numbers that stand for what is missing; NaN isn't among them, for it is that already."""
    found: list[float] = []
    for name in ("_FillValue", "missing_value"):
        if name not in attributes:
            continue
        values = np.atleast_1d(np.asarray(attributes[name]))
        if values.dtype.kind not in "biuf" or values.size > 16:
            raise DataError(f"{where}: expected a number as {name}, got {repr(attributes[name])[:60]}; correct it")
        if values.dtype.kind == "i" and stored.kind == "u" and values.dtype.itemsize == stored.itemsize:
            values = values.view(stored)
        for value in values.ravel().tolist():
            fits = stored.kind == "f" or (value % 1 == 0 and _holds(stored, int(value))) if value == value else False
            if fits and value not in found:
                found.append(value)
    return tuple(found)


def _range(where: str, stored: np.dtype[Any], attributes: Mapping[str, Any]) -> tuple[float, float, bool]:
    """(the least number that isn't missing, the largest, whether these are floats); infinite where all are valid."""
    ends, is_float = [-inf, inf], False
    for name, places in (("valid_range", (0, 1)), ("valid_min", (0,)), ("valid_max", (1,))):
        if name not in attributes:
            continue
        values = np.asarray(attributes[name]).ravel()
        if values.dtype.kind not in "iuf" or values.size != len(places) or np.isnan(values).any():
            what = "two numbers" if len(places) == 2 else "a number"
            raise DataError(f"{where}: expected {what} as {name}, got {repr(attributes[name])[:60]}; correct it")
        if values.dtype.kind == "i" and stored.kind == "u" and values.dtype.itemsize == stored.itemsize:
            values = values.view(stored)
        is_float = is_float or values.dtype.kind == "f"
        for place, value in zip(places, values.tolist(), strict=True):
            ends[place] = (max, min)[place](ends[place], float(value))
    if stored.kind in "iu" and not is_float:
        limits = np.iinfo(stored)
        ends = [
            end if inside else far
            for end, inside, far in zip(ends, (ends[0] > limits.min, ends[1] < limits.max), (-inf, inf), strict=True)
        ]
    if ends[0] > ends[1]:
        raise DataError(f"{where}: expected a valid range, got {ends[0]:g} to {ends[1]:g}; correct its attributes")
    return ends[0], ends[1], is_float


def _holds(dtype: np.dtype[Any], value: int) -> bool:
    if dtype.kind == "b":
        return value in (0, 1)
    limits = np.iinfo(dtype)
    return int(limits.min) <= value <= int(limits.max)


def _number(where: str, name: str, attributes: Mapping[str, Any]) -> Any:
    """A float of the attribute's type, or None where it isn't there."""
    if name not in attributes:
        return None
    value = np.asarray(attributes[name])
    if value.size != 1 or value.dtype.kind not in "iuf" or not np.isfinite(value).all():
        raise DataError(f"{where}: expected a finite number as {name}, got {repr(attributes[name])[:60]}; correct it")
    value = value.reshape(())[()]
    return value if value.dtype.kind == "f" else np.float64(value)
