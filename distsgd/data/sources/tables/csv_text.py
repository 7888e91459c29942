"""The text of a CSV file: separators, header, and where rows end. It finds the rows that Python's csv finds."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.sources.streams import Stream

BLOCK = 8 << 20
"""Bytes of text that are parsed together."""
MOST_ROW, MOST_HEADER = 64 << 20, 8 << 20
"""Bytes of a row, and of the first."""
_MARK = b"\xef\xbb\xbf"
"""What some programs write before UTF-8."""
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
AS_UTF8 = "save it as UTF-8, say with iconv -f LATIN1 -t UTF-8"
MISSING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
"""What stands for a missing value, as in pandas."""


@dataclass(frozen=True)
class Layout:
    """How a file is written: `names` of its columns, whether the first row has them, and where rows begin."""

    names: tuple[str, ...]
    delimiter: str
    decimal: str
    header: bool
    begin: int


def layout_of(where: str, text: bytes, whole: bool) -> Layout:
    """The layout of a file that begins with this text; `whole`, with all of it. Raises DataError."""
    if text.startswith(b"PK\3\4"):
        raise DataError(f"{where}: expected a CSV file, or one in gzip, got a zip archive; unpack it")
    if text[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in text:
        raise _no_text(where, text, 0)
    mark = len(_MARK) if text.startswith(_MARK) else 0
    start = mark + len(text[mark:]) - len(text[mark:].lstrip(b"\r\n"))
    end = first_end(where, text[start:] + (b"\n" if whole else b""))
    if not end:
        raise DataError(f"{where}: expected a first row of at most {MOST_HEADER:,} bytes; is it a CSV file?")
    try:
        line = text[start : start + end].decode("utf-8").strip("\r\n")
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{where}: expected text in UTF-8, the first row is in another code from its byte {problem.start:,} on; "
            f"{AS_UTF8}"
        ) from None
    if "\r" in re.sub(r'"[^"]*"', "", line):
        raise _old_ends(where)
    if not line:
        raise DataError(f"{where}: expected a row with the names of columns, the file is empty; add data")
    delimiter = _delimiter(line)
    if line.startswith("#") and delimiter not in line:
        raise DataError(
            f"{where}: expected the names of columns in the first row, it is a comment ({line[:40]!r}); remove the "
            "lines before the names"
        )
    fields = next(csv.reader(io.StringIO(line, newline=""), delimiter=delimiter))
    decimal = "," if delimiter == ";" and any(map(_DECIMAL_COMMA.fullmatch, fields)) else "."
    header = not all(field in MISSING or is_number(field, decimal) for field in fields)
    names = tuple(fields) if header else tuple(map(str, range(len(fields))))
    names = tuple(name or f"Unnamed: {k}" for k, name in enumerate(names))
    return Layout(names, delimiter, decimal, header, start + end if header else start)


def _delimiter(line: str) -> str:
    """A comma; or where there is none a tab, or a semicolon. With semicolons numbers may have commas in them."""
    bare = re.sub(r'"[^"]*"', "", line)
    parts = bare.split(";")
    if len(parts) > 1 and all(is_number(part, ",") for part in parts):
        return ";"
    return next((one for one in (",", "\t", ";") if one in bare), ",")


def is_number(text: str, decimal: str = ".") -> bool:
    """Whether a text is a number, as Arrow reads it."""
    try:
        float(text.replace(decimal, ".") if decimal != "." else text)
    except ValueError:
        return False
    return "_" not in text


def has_decimal_comma(texts: list[str]) -> bool:
    """Whether each of these texts is a number with a comma in it."""
    return bool(texts) and all(map(_DECIMAL_COMMA.fullmatch, texts))


def first_end(where: str, text: bytes) -> int:
    """The length of the first row, with its end; 0 where it doesn't end here. Quotes may have line ends in them."""
    at = text.find(b"\n", 0, MOST_HEADER)
    while at >= 0:
        if not text.count(b'"', 0, at) & 1:
            return at + 1
        at = text.find(b"\n", at + 1, MOST_HEADER)
    return 0


@dataclass(frozen=True)
class Block:
    """Whole rows of a file: where they begin in it, their text, whether quotes hold line ends, and where rows end."""

    offset: int
    text: bytes | bytearray
    quoted_ends: bool
    ends: Array | None = None

    def starts(self) -> Array:
        """Where in the text each row begins, without empty lines."""
        assert self.ends is not None
        begin = np.concatenate([[0], self.ends[:-1] + 1])
        length = self.ends - begin
        codes = np.frombuffer(self.text, np.uint8)
        empty = (length == 0) | ((length == 1) & (codes[np.minimum(begin, len(codes) - 1)] == 13))
        found: Array = begin[~empty]
        return found


def blocks(where: str, stream: Stream, offset: int, delimiter: str, *, with_ends: bool) -> Iterator[Block]:
    """The rows of a stream from here, which is at `offset` of the file, in blocks of some megabytes.

    Raises DataError for text that isn't rows of UTF-8 with line ends of this century.
    """
    left: bytes | bytearray = b""
    while True:
        text = bytearray(len(left) + BLOCK)
        text[: len(left)] = left
        read = stream.readinto(memoryview(text)[len(left) :])  # type: ignore[attr-defined]
        del text[len(left) + read :]
        if not read and text and not text.endswith(b"\n"):
            text += b"\n"
        if not text:
            return
        cut, quoted_ends, ends = row_ends(where, text, delimiter, with_ends=with_ends, last=not read, offset=offset)
        left = text[cut:]
        del text[cut:]
        if cut:
            yield Block(offset, text, quoted_ends, ends)
        offset += cut
        if not read:
            return
        if len(left) > MOST_ROW:
            raise DataError(
                f"{where}: expected rows of at most {MOST_ROW:,} bytes, one after byte {offset:,} is longer; is a "
                "quotation mark missing?"
            )


def row_ends(
    where: str, text: bytes | bytearray, delimiter: str, *, with_ends: bool, last: bool, offset: int = 0
) -> tuple[int, bool, Array | None]:
    """Where the last whole row of a text ends, whether quotes hold line ends, and the ends of all rows if asked."""
    if b"\0" in text:
        raise _no_text(where, text, offset)
    has_quotes = b'"' in text
    if not has_quotes and not with_ends:
        _check_ends(where, text)
        return text.rfind(b"\n") + 1, False, None
    codes = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(codes == 10)
    inside = False
    if has_quotes:
        quotes = np.flatnonzero(codes == 34)
        outer = np.searchsorted(quotes, ends) & 1 == 0
        inside = not outer.all()
        ends = ends[outer]
        cut = int(ends[-1]) + 1 if len(ends) else 0
        if last and len(quotes) & 1:
            raise DataError(f"{where}: expected a quotation mark after each one, the last is missing; add it")
        _check_quotes(where, codes, quotes[: np.searchsorted(quotes, cut)], delimiter)
        returns = np.flatnonzero(codes[:cut] == 13)
        returns = returns[np.searchsorted(quotes, returns) & 1 == 0]
        if len(returns) and (codes[returns + 1] != 10).any():
            raise _old_ends(where)
    else:
        _check_ends(where, text)
    cut = int(ends[-1]) + 1 if len(ends) else 0
    return cut, inside, ends


def _check_ends(where: str, text: bytes | bytearray) -> None:
    if b"\r" in text and text.count(b"\r") != text.count(b"\r\n") + text.endswith(b"\r"):
        raise _old_ends(where)


def _check_quotes(where: str, codes: Array, quotes: Array, delimiter: str) -> None:
    """Raises DataError for a quotation mark within a field that isn't quoted: what is a row then depends on who
    reads."""
    opening, closing = quotes[::2], quotes[1::2]
    edges = np.array([ord(delimiter), 10, 13], np.uint8)
    before = codes[np.maximum(opening - 1, 0)]
    begins = (opening == 0) | np.isin(before, edges)
    begins[1:] |= opening[1:] == closing[: len(opening) - 1] + 1  # a doubled one
    after = codes[np.minimum(closing + 1, len(codes) - 1)]
    finishes = np.isin(after, edges) | (after == 34)
    if not (begins.all() and finishes.all()):
        at = int(opening[~begins][0] if not begins.all() else closing[~finishes][0])
        shown = codes[max(0, at - 20) : at + 20].tobytes().decode("utf-8", "replace")
        raise DataError(
            f"{where}: expected quotation marks around a whole field, and within it doubled, got {shown!r}; put the "
            "field in quotes"
        )


def _no_text(where: str, text: bytes | bytearray, offset: int) -> DataError:
    """For a text with a NUL, or one that begins as UTF-16 does, which begins here in the file."""
    return DataError(
        f"{where}: expected text in UTF-8, it has bytes that are no text, from byte {offset + max(0, text.find(0)):,} "
        "on; save it as CSV in UTF-8, say with iconv -f UTF-16 -t UTF-8"
    )


def _old_ends(where: str) -> DataError:
    return DataError(
        f"{where}: expected rows that end in \\n or \\r\\n, some end in \\r alone; save it with other line ends"
    )


def explained(
    where: str, layout: Layout, kinds: dict[str, str], text: bytes | bytearray, first: int, line: int, reason: str
) -> DataError:
    """The error for rows that can't be parsed: which row and column, and what is there.

    kinds         of the columns that are read: number, truth or text
    first, line   the number of the first row, from 0, and of its line in the file, from 1
    """
    try:
        lines = io.StringIO(text.decode("utf-8"), newline="")
    except UnicodeDecodeError as problem:
        wrong = line + text.count(b"\n", 0, problem.start)
        return DataError(f"{where}: expected text in UTF-8, line {wrong:,} has another code; {AS_UTF8}")
    reader, before = csv.reader(lines, delimiter=layout.delimiter), 0
    for row in reader:
        if not row:
            before = reader.line_num
            continue
        at = f"row {first:,} (line {line + before:,})"
        if len(row) != len(layout.names):
            return DataError(f"{where}: {at}: expected {len(layout.names)} values, as there are columns, got "
                             f"{len(row)}; correct it")  # fmt: skip
        for name, value in zip(layout.names, row, strict=True):
            wanted = kinds.get(name, "text")
            right = wanted == "text" or value in MISSING or is_number(value, layout.decimal)
            if wanted == "truth":
                right = value in MISSING or value.lower() in ("true", "false", "0", "1")
            if not right:
                what = "a number" if wanted == "number" else "true or false"
                return DataError(
                    f"{where}: column {name}, {at}: expected {what} as above, got {value[:60]!r}; correct it, or leave "
                    "the column out of --x"
                )
        first, before = first + 1, reader.line_num
    return DataError(f"{where}: expected rows of numbers and text after row {first:,}, parsing them failed ({reason})")
