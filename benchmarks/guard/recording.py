"""Recordings: digests of what trainings left, the files that hold them, and what differs between two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.guard.adapter import RUN

Fields = Mapping[str, Any]
"""Names and what they hold: digests, or the values themselves where they are short."""

_SHORT = 40


def short(text: str | bytes) -> str:
    """The first 12 hexadecimal digits of the sha256."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:12]


def of_arrays(arrays: Mapping[str, Any]) -> dict[str, str]:
    """A digest of each array: its type, its shape, its bytes in the order of rows."""
    return {name: short(f"{a.dtype.str} {a.shape} ".encode() + a.tobytes()) for name, a in arrays.items()}


def of_records(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """A digest of each field over all records, with the numbers of the records that have it; `run` is left out."""
    columns: dict[str, list[str]] = {}
    for number, record in enumerate(records):
        for name, value in leaves(record).items():
            columns.setdefault(name, []).append(f"{number}: {value}")
    return {name: short("\n".join(lines)) for name, lines in columns.items()}


def of_summary(summary: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a summary, long ones as a digest; `run` is left out."""
    return {name: value if len(value) <= _SHORT else short(value) for name, value in leaves(summary).items()}


def leaves(record: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """All values as JSON, by dotted names; without what may differ between equal runs."""
    found: dict[str, str] = {}
    for name, value in record.items():
        if not before and name == RUN:
            continue
        if isinstance(value, Mapping):
            found |= leaves(value, f"{before}{name}.")
        else:
            found[before + name] = json.dumps(value)
    return found


# --- comparing


def compare_fields(old: Fields, new: Fields, renames: Mapping[str, str]) -> list[str]:
    """What differs, in words. `renames` are names that may have changed; an empty name is of a field that isn't there.

    A field that has another name and the same values is told as such.
    """
    allowed = {name for before, name in renames.items() if before.startswith("=")}
    dropped = {before for before, name in renames.items() if not name}
    left = {renames.get(name, name) or name: value for name, value in old.items()}
    gone = [name for name in left if name not in new and name not in dropped]
    added = [name for name in new if name not in left and name not in allowed]
    told = [
        f"{name} differs{_values(left[name], new[name])}" for name in left if name in new and left[name] != new[name]
    ]
    moved = []
    for name in list(gone):
        match = next((other for other in added if new[other] == left[name]), None)
        if match is not None:
            gone.remove(name)
            added.remove(match)
            moved.append(f"{name}={match}")
    if moved:
        told.append(f"names differ, values equal: {' '.join(moved)}")
    told += [f"{name} is gone" for name in gone] + [f"{name} is new" for name in added]
    return told


def _values(old: Any, new: Any) -> str:
    """Both values where they are no digests."""
    shown = [str(one) for one in (old, new)]
    return (
        ""
        if all(len(one) == 12 and not one.strip("0123456789abcdef") for one in shown)
        else " ({} → {})".format(*shown)
    )


def compare_lists(old: list[str], new: list[str], renames: Mapping[str, str]) -> list[str]:
    """The first place where two lists of launches differ."""

    def renamed(line: str) -> str:
        name, space, rest = line.partition(" ")
        return renames.get(name, name) + space + rest

    old = [renamed(line) for line in old]
    if old == new:
        return []
    at = next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    there, here = (lines[at] if at < len(lines) else "nothing" for lines in (old, new))
    return [f"{len(old)} launches, now {len(new)}; number {at + 1} was {there}, is {here}"]


def compare_entries(old: Mapping[str, Any], new: Mapping[str, Any], renames: Mapping[str, str]) -> list[str]:
    """What differs between two recordings of one configuration, in words."""
    told: list[str] = []
    for section in dict.fromkeys([*old, *new]):
        if section not in old or section not in new:
            told.append(f"{section}: only in the {'recording' if section in old else 'new one'}")
        else:
            compare = compare_lists if isinstance(old[section], list) else compare_fields
            told += [f"{section}: {one}" for one in compare(old[section], new[section], renames)]
    return told


def compare_tables(old: Mapping[str, Any], new: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, list[str]]:
    """What differs, by configuration; a configuration that the recording doesn't have is none."""
    found = {
        name: compare_entries(entry, new[name], renames) if name in new else ["was not run"]
        for name, entry in old.items()
    }
    return {name: told for name, told in found.items() if told}
