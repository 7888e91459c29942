"""Recordings: digests of what a training leaves, and what differs between two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from benchmarks.guard.adapter import RUN

Fields = Mapping[str, str]
"""Names, and what they hold: a digest, or the value itself as JSON where it is short."""
Entry = Mapping[str, Any]
"""What is recorded of one configuration: sections, each of them Fields or a list of launches."""

_LONGEST_VALUE = 66
"""A sha256 in quotes."""
_LONGEST_SHOWN = 24
_NAMED = 4
"""Fields of a section that are named where they differ; of more, only their number is given."""


def digest(content: bytes) -> str:
    """The first 12 hexadecimal digits of the sha256."""
    return hashlib.sha256(content).hexdigest()[:12]


def of_arrays(arrays: Mapping[str, Any]) -> dict[str, str]:
    """A digest of each array: its type, its shape, its bytes in the order of rows."""
    return {name: digest(f"{a.dtype.str} {a.shape} ".encode() + a.tobytes()) for name, a in arrays.items()}


def of_records(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """A digest of each field: its values in all records that have it, with the records' numbers; without `run`."""
    columns: dict[str, list[str]] = {}
    for number, record in enumerate(records):
        for name, value in leaves(record).items():
            columns.setdefault(name, []).append(f"{number}: {value}")
    return {name: digest("\n".join(lines).encode()) for name, lines in columns.items()}


def of_summary(summary: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a summary, long ones as a digest; without `run`."""
    return {
        name: value if len(value) <= _LONGEST_VALUE else digest(value.encode())
        for name, value in leaves(summary).items()
    }


def leaves(record: Mapping[str, Any]) -> dict[str, str]:
    """All values as JSON, by dotted names, but for what may differ between equal runs."""

    def walk(value: Any, name: str) -> dict[str, str]:
        if not isinstance(value, Mapping) or not value:
            return {name: json.dumps(value)}
        return {key: leaf for inner in value for key, leaf in walk(value[inner], f"{name}.{inner}").items()}

    return {key: leaf for name in record if name != RUN for key, leaf in walk(record[name], name).items()}


@dataclass(frozen=True)
class Renames:
    """Changes of names that are meant: OLD to NEW in `names`, fields that are new, and fields that are gone."""

    names: Mapping[str, str] = field(default_factory=dict)
    new: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()

    @staticmethod
    def parse(pairs: Iterable[str]) -> Renames:
        """From OLD=NEW, =NEW and OLD=. Raises ValueError for anything else."""
        split = [pair.split("=") for pair in pairs]
        for parts in split:
            if len(parts) != 2 or not any(parts):
                raise ValueError(f"--rename: expected OLD=NEW, =NEW or OLD=, got {'='.join(parts)!r}")
        return Renames(
            {old: new for old, new in split if old and new},
            frozenset(new for old, new in split if not old),
            frozenset(old for old, new in split if not new),
        )

    def of(self, name: str) -> str:
        """The name of today."""
        return self.names.get(name, name)


def compare_fields(old: Fields, new: Fields, renames: Renames) -> list[str]:
    """What differs, in words. A field that has another name and the same values is reported as that."""
    old = {renames.of(name): value for name, value in old.items()}
    gone = [name for name in old if name not in new and name not in renames.gone]
    added = [name for name in new if name not in old and name not in renames.new]
    differing = [name for name in old if name in new and old[name] != new[name]]
    reported = [f"{name} differs{_shown(old[name], new[name])}" for name in differing[:_NAMED]]
    reported += [f"{len(differing) - _NAMED} more differ"] if len(differing) > _NAMED else []
    moved = []
    for name in [*gone]:
        same = next((other for other in added if new[other] == old[name]), None)
        if same is not None:
            gone.remove(name)
            added.remove(same)
            moved.append(f"{name}={same}")
    reported += [f"names differ, values equal: {' '.join(moved)}"] if moved else []
    return reported + [f"{name} is gone" for name in gone] + [f"{name} is new" for name in added]


def _shown(old: str, new: str) -> str:
    """Both values, where they are values and short."""
    digests = all(len(one) == 12 and not one.strip("0123456789abcdef") for one in (old, new))
    return "" if digests or len(old + new) > 2 * _LONGEST_SHOWN else f" ({old}, now {new})"


def compare_launches(old: Sequence[str], new: Sequence[str], renames: Renames) -> list[str]:
    """The first place where two lists of launches differ; the first word of each may have been renamed."""
    for number, (before, now) in enumerate(zip_longest(old, new, fillvalue="nothing"), 1):
        name, space, rest = before.partition(" ")
        if renames.of(name) + space + rest != now:
            return [f"number {number} of {len(old)} was '{before}', now it is '{now}', of {len(new)}"]
    return []


def compare_entries(old: Entry, new: Entry, renames: Renames | None = None) -> list[str]:
    """What differs between two recordings of one configuration, in words."""
    renames = renames or Renames()
    reported: list[str] = []
    for section in dict.fromkeys([*old, *new]):
        if section not in old or section not in new:
            reported.append(f"{section} {'are gone' if section in old else 'are new'}")
            continue
        compare = compare_launches if isinstance(old[section], list) else compare_fields
        found = compare(old[section], new[section], renames)
        reported += [f"{section}: {', '.join(found)}"] if found else []
    return reported
