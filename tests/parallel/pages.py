"""Finds the fenced blocks of the pages, and compares what a command prints with what a page shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
        *sorted((ROOT / "docs" / "coming-from").glob("*.md")),
        ROOT / "launch" / "README.md",
    )
}

WITH_FRAMEWORKS = [page for page in PAGES if page.startswith("docs/coming-from/")]
"""Pages that tests/integrations/test_pages.py runs, for their code imports a framework."""

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})([^`\n]*)\n(.*?)^ *\2[`~]* *$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (not run:|needs|a file:)((?:(?!-->).)*)--> *\n\Z", re.DOTALL)

SHELL = ("sh", "bash", "console")
PACKAGE = re.compile(r"# (distsgd/[^\n]+)\n")
"""The first line of Python that goes into distsgd itself: tests/unit/project/test_extending.py puts it there."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    reason   why it isn't run, where it is marked so
    after    whether nothing but blank lines is between it and the block before
    needs    the module without which it isn't run
    is_file  whether it is written to its file alone, which a command after it runs
    """

    page: str
    line: int
    language: str
    text: str
    reason: str | None
    after: bool
    needs: str = ""
    is_file: bool = False

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command, the lines that a page shows after it (None: nothing is shown), and the exit statuses it may have."""

    text: str
    output: str | None = None
    statuses: tuple[int, ...] = (0,)


def blocks_of(page: str, text: str) -> list[Block]:
    """The blocks of a page in order; directives of the site's builder (```{name}) are none."""
    found: list[Block] = []
    end = 0
    for match in _FENCE.finditer(text):
        language = match[3].strip()
        if language.startswith("{"):
            continue
        mark = _MARK.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        between = text[end : match.start()] if found else "start"
        content = re.sub(rf"^ {{0,{len(match[1])}}}", "", match[4], flags=re.MULTILINE)  # as CommonMark does
        kind, text_of_mark = (mark[1], mark[2].strip()) if mark else ("", "")
        found.append(
            Block(
                page,
                line,
                language,
                content,
                reason=text_of_mark if kind == "not run:" else None,
                after=not between.strip(),
                needs=text_of_mark if kind == "needs" else "",
                is_file=kind == "a file:",
            )
        )
        end = match.end()
    return found


def commands_of(block: Block) -> list[Command]:
    """The commands of a block of shell: every line of sh and bash, what begins with $ of console."""
    console = block.language == "console"
    found: list[Command] = []
    lines = iter(block.text.splitlines())
    shown: list[str] = []
    for line in lines:
        if not console or line.startswith("$ "):
            _show(found, shown)
            command = _whole(line.removeprefix("$ ") if console else line, lines)
            if command.strip() and not command.lstrip().startswith("#"):
                shows = re.search(r" # exit status (\d+)(?: or (\d+))?$", command)
                found.append(Command(command, None, tuple(map(int, filter(None, shows.groups()))) if shows else (0,)))
        else:
            shown.append(line)
    _show(found, shown)
    return found


def _show(found: list[Command], shown: list[str]) -> None:
    """Gives the lines shown so far to the last command."""
    if shown:
        found[-1] = replace(found[-1], output="\n".join(shown))
        shown.clear()


def _whole(line: str, following: Iterator[str]) -> str:
    """A command with its further lines: after a backslash, and while a quote is open."""
    while line.endswith("\\") or line.count('"') % 2 or line.count("'") % 2:
        line += "\n" + next(following)
    return line


_HASH = r"\b(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{8,64}\b"
_DECIMAL = r"(?<![\w.])[-−]?\d+\.\d+(?:e[-+]?\d+)?(?![\w.…])"
_PLACES = re.compile(rf"(?P<any>…)|(?P<hash>{_HASH})|(?P<decimal>{_DECIMAL})|(?P<space>\s+)")


def difference(shown: str, printed: str, hashes: dict[str, str]) -> str | None:
    """What is wrong with `shown`, or None.

    `…` stands for any text, or on a line of its own for any lines. Spaces count as one. A decimal number may be off by
    2 %, for kernels of matrix products round differently. A hash stands for the one that this machine computes: what is
    equal in a page (`hashes`) must be equal here, and what differs must differ.
    """
    lines = [line.strip() if line.strip() == "…" else line.rstrip() for line in shown.strip("\n").splitlines()]
    pattern = "".join(r"(?:.*\n)*" if line == "…" else rf"{_pattern(line)}\n" for line in lines)
    match = re.fullmatch(pattern, "".join(f"{line.rstrip()}\n" for line in printed.strip("\n").splitlines()))
    if match is None:
        return f"expected\n{shown}\nbut it printed\n{printed}"
    expected = [place for place in _PLACES.finditer("\n".join(lines)) if place.lastgroup in ("hash", "decimal")]
    for place, value in zip(expected, match.groups(), strict=True):
        if place.lastgroup == "decimal":
            if abs(_number(value) - _number(place[0])) > 0.02 * abs(_number(place[0])):
                return f"expected {place[0]}, it printed {value}; show … where a number can't be foreseen"
        elif hashes.setdefault(place[0], value) != value or list(hashes.values()).count(value) > 1:
            return f"{place[0]} stands for {hashes[place[0]]} and for {value}: what is equal in a page must be equal"
    return None


def _pattern(line: str) -> str:
    end, parts = 0, []
    kinds = {"any": ".*", "hash": "([0-9a-f]+)", "decimal": r"([-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)", "space": r"[^\S\n]+"}
    for place in _PLACES.finditer(line):
        parts += [re.escape(line[end : place.start()]), kinds[place.lastgroup or "any"]]
        end = place.end()
    return "".join([*parts, re.escape(line[end:])])


def _number(text: str) -> float:
    return float(text.replace("−", "-"))
