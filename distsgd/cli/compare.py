"""distsgd compare RUN …: a table of runs by the options in which they differ, their scores and times."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distsgd.cli.commands import run_command
from distsgd.core.options import option
from distsgd.core.output import say

if TYPE_CHECKING:
    from distsgd.parallel import Communicator
    from distsgd.run.comparison import Comparison


@dataclass(frozen=True)
class Options:
    """Print a table of runs: the options in which they differ, their scores, steps and times.

    Scores are those of the parameters that a run keeps; of a run without a summary, those so far. What doesn't fit
    beside each other in the terminal is printed below. distsgd plot RUNS draws the same runs.
    """

    # fmt: off
    runs: tuple[str, ...] = option((), "The runs' folders.", positional=True, path=True)
    sort: str | None = option(None,
        "The column to sort by, such as test_accuracy; runs without a value are last. Default: the order given.")
    order: str = option("best",
        "The order of --sort. best: scores from the best on, all else ascending.",
        choices=("best", "ascending", "descending"))
    csv: str | None = option(None, path=True, help=
        "Write all columns to this CSV file, or with - to the standard output, in place of the table.")
    # fmt: on


def main() -> int:
    """The command; returns the exit status."""
    return run_command(print_comparison)


def print_comparison(communicator: Communicator, arguments: Sequence[str]) -> int:
    """Reads and prints on rank 0. Collective."""
    from distsgd.cli.command_line import parse_arguments

    def act() -> None:
        options = parse_arguments(Options, arguments, "distsgd compare")
        found = compared(options)
        if options.csv is None:
            for line in found.table(_width()):
                say(line)
        else:
            write(found.csv(), options.csv)
        for note in found.notes:
            say(f"warning: {note}", sys.stderr)

    communicator.on_root(act)
    return 0


def compared(options: Options) -> Comparison:
    """The comparison that the options ask for."""
    from distsgd.core.errors import ConfigurationError
    from distsgd.run.comparison import compare

    if not options.runs:
        raise ConfigurationError("expected the folders of runs (see distsgd compare --help)")
    if options.sort is None and options.order != "best":
        raise ConfigurationError(f"order: {options.order} is for --sort, which is not given; add it, or leave both out")
    found = compare(options.runs)
    return found if options.sort is None else found.sorted_by(options.sort, options.order)


def write(text: str, out: str) -> None:
    """Writes CSV to a file, whole or not at all, or to the standard output. Raises RunFolderError where it can't."""
    from distsgd.core.errors import RunFolderError
    from distsgd.core.files import expanded
    from distsgd.core.folders import write_atomically
    from distsgd.core.output import say_lines

    if out == "-":
        say_lines(text.removesuffix("\n"))
        return
    path = expanded(out)
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise RunFolderError(
            f"could not write {path}: {error.strerror or error}; choose another file with --csv"
        ) from None
    say(f"{text.count(chr(10)) - 1} runs in {path}")


def _width() -> int:
    """Columns of the terminal; 80 where the output is none and COLUMNS isn't set."""
    from shutil import get_terminal_size

    return max(get_terminal_size((80, 24)).columns, 40)
