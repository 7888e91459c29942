"""The lines of metrics.jsonl: each holds its number and a checksum, so that damage is found and named.

Both are the last two entries of a record's `run`, which is what may differ between equal runs: `line`, from 1 in each
file, and `crc`, the CRC-32 of the line's bytes before its own digits. A changed byte, and a line that is missing, out
of place or there twice are found. Lines of older versions hold neither: of those, what is no record is found.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, final

from distsgd.core.output import counted

RECORDS = "records"
"""The entry of a checkpoint's document that says how many lines metrics.jsonl had then."""
SAVED = "saved"
"""The entry of a checkpoint's document that says that a program has saved a model, and no run."""
ROWS = "validation_rows.npy"
"""The file beside it that says which training examples were split off for validation."""
_ENCODE = json.JSONEncoder(allow_nan=False).encode
_END = re.compile(rb'"line": (\d{1,15}), "crc": "([0-9a-f]{8})"\}\}\r?\n?')
"""The end of a line with a checksum."""
_PART_OF_END = re.compile(rb'"line": \d+[,}]|"crc": "')
"""A part of such an end. A record of an older version can't hold one: its values are floats."""
UNENDED = "its end is no whole line"
"""What is wrong with a finished run's file whose last line was cut short, or to which text was added."""
_NAMED = 3
"""How many problems of one file are named; all are counted."""


def finite(value: Any) -> Any:
    """The value for JSON, which has no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def encode(record: Mapping[str, Any], number: int) -> bytes:
    """The line of a record, with its number and checksum where the record has an entry `run`."""
    kept = finite(record)
    if not isinstance(kept.get("run"), dict):
        return f"{_ENCODE(kept)}\n".encode()
    kept["run"] = {**{key: value for key, value in kept.pop("run").items() if key != "crc"}, "line": number, "crc": ""}
    head = _ENCODE(kept).removesuffix('"}}').encode()
    return head + b'%08x"}}\n' % zlib.crc32(head)


def without_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it was before `encode`."""
    if not isinstance(record.get("run"), dict):
        return dict(record)
    return {**record, "run": {key: value for key, value in record["run"].items() if key not in ("line", "crc")}}


class Line(NamedTuple):
    """A line that is whole and unchanged, at this place in its file; `number` is None where it holds none."""

    place: int
    number: int | None
    text: bytes
    record: dict[str, Any]


@final
class Reading:
    """Goes through the lines of a metrics.jsonl once, whatever they hold; its attributes then say what is wrong.

    Parameters
    ----------
    lines
        The file's lines, with their ends.

    Attributes
    ----------
    count
        How many lines are whole and unchanged.
    changed
        Whether a line is no record, or not the one that was written.
    torn
        Whether the last line was cut short, as when its writer was killed.
    ended
        Whether the last line so far has its end.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.count, self.changed, self.torn, self.ended = 0, False, False, True
        self._problems: list[str] = []
        self._more = 0

    @property
    def damaged(self) -> bool:
        """Whether anything is wrong that no killed writer leaves."""
        return bool(self._problems)

    @property
    def damage(self) -> str:
        """What is wrong, such as `line 3 was changed`; empty where nothing is."""
        return ", ".join(self._problems) + (f" and {self._more} more" if self._more else "")

    def __iter__(self) -> Iterator[Line]:
        """One at a time, for the records of all lines take five times the file's length."""
        after = uncertain = 0  # the number of the line before; how many changed lines may have the next numbers
        sealed = False
        for place, text in enumerate(self._lines, 1):
            number, record, problem = _understood(text, sealed)
            self.ended = text.endswith(b"\n")
            if record is None:
                if self.ended:
                    self._note(f"line {place} {problem}")
                    uncertain, self.changed = uncertain + 1, True
                else:
                    self.torn = True  # only the last line may lack its end
                continue
            if number is None:
                after += 1
            elif number <= after:
                self._note(f"line {place} is out of its place or there twice")
            else:
                if number > after + 1 + uncertain:
                    self._note(missing(number - after - 1 - uncertain, f" before line {place}"))
                after, uncertain = number, 0
            sealed = sealed or number is not None
            self.count += 1
            yield Line(place, number, text if self.ended else text + b"\n", record)

    def _note(self, problem: str) -> None:
        if len(self._problems) < _NAMED:
            self._problems.append(problem)
        else:
            self._more += 1


def missing(count: int, where: str) -> str:
    """What is wrong where so many lines are missing there."""
    return f"{counted(count, 'line')}{where} {'is' if count == 1 else 'are'} missing"


def _understood(text: bytes, sealed: bool) -> tuple[int | None, dict[str, Any] | None, str]:
    """(the line's number, its record, what is wrong); `sealed` says whether a line before has a checksum."""
    try:
        record = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None, None, "is no record"
    if not (isinstance(record, dict) and isinstance(record.get("step", 0), int)):
        return None, None, "is no record"
    end = _END.search(text)
    if end is None or end.end() != len(text):
        if sealed or _PART_OF_END.search(text):
            return None, None, "was changed"
        return None, record, ""
    if zlib.crc32(text[: end.start(2)]) != int(end[2], 16):
        return None, None, "was changed"
    return int(end[1]), record, ""


def lines_of(document: Mapping[str, Any]) -> int:
    """How many lines metrics.jsonl had when a checkpoint was saved, by its document; 0 where it doesn't say so."""
    count = document.get(RECORDS)
    return count if type(count) is int else 0


def repaired(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines in the order of their numbers, each once, and numbered anew."""
    found: dict[int, bytes] = {}
    sealed = {}
    for place, line in enumerate(Reading(lines), 1):
        key = place if line.number is None else line.number
        sealed[key] = line.number is not None
        found.setdefault(key, line.text)
    for number, key in enumerate(sorted(found), 1):
        yield encode(json.loads(found[key]), number) if sealed[key] else found[key]
