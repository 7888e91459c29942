"""What is generated from the declarations of options: fit's typed keywords and the documentation's tables.

python -m tests.generated_options writes all files.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from inspect import getdoc, signature
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from distsgd.cli.command_line import TrainOptions
from distsgd.cli.main import SUBCOMMANDS
from distsgd.core.options import REQUIRED, Option, options_of
from distsgd.run.config import OPTIONS
from distsgd.run.config_file import SHORT
from distsgd.run.fit import fit
from distsgd.run.fit_arguments import NOT_FOR_FIT

ROOT = Path(__file__).parents[1]
KEYWORDS = ROOT / "distsgd" / "run" / "fit_options.pyi"
PAGE = ROOT / "docs" / "options.md"
COMMANDS = ROOT / "docs" / "command-line.md"


def keywords() -> str:
    """The TypedDict of fit's keywords."""
    names = {name: name for name in OPTIONS if name not in NOT_FOR_FIT and name not in signature(fit).parameters}
    return "\n".join(
        [
            '"""The options that distsgd.fit takes as keywords; made by python -m tests.generated_options."""',
            "",
            "from collections.abc import Sequence",
            "from os import PathLike",
            "from typing import Literal, TypeAlias, TypedDict",
            "",
            "LossName: TypeAlias = Literal[",
            *(f'    "{name}",' for name in OPTIONS["loss"].choices),
            "]",
            "",
            "class FitOptions(TypedDict, total=False):",
            *(f"    {keyword}: {_annotation(OPTIONS[name])}" for keyword, name in (names | SHORT).items()),
            "",
        ]
    )


def _annotation(option: Option) -> str:
    if option.choices:
        return f"Literal[{', '.join(map(repr, option.choices))}]".replace("'", '"')
    if option.name == "classes":
        return "int | str | Sequence[str]"
    if option.is_list:
        item = _type(get_args(option.kind)[0])
        return f"{item} | Sequence[{item}]"
    kind = _type(option.kind)
    return kind.replace("str", "str | PathLike[str]") if option.path and not option.code else kind


def _type(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join(map(_type, get_args(kind)))
    if get_origin(kind) is Literal:
        return f"Literal[{', '.join(map(repr, get_args(kind)))}]".replace("'", '"')
    return "None" if kind is type(None) else str(kind.__name__)


def page() -> str:
    """The documentation's page of options."""
    head = [
        "# Options of `distsgd train`",
        "",
        "`python -m distsgd.train --help` prints the same. In a TOML file and in `distsgd.fit`, names have underscores",
        "in place of dashes. `N` is a whole number, `X` any number; `…` stands for several values. A time is `90s`,",
        "`5m`, `4h30` (4 hours 30 minutes) or `1d`.",
    ]
    groups = groupby(options_of(TrainOptions).values(), attrgetter("group"))
    return "\n".join([*head, *(line for title, options in groups for line in _table(title, options)), ""])


def commands() -> str:
    """The documentation's page of subcommands."""
    head = [
        "# Commands",
        "",
        "`distsgd SUBCOMMAND` and `python -m distsgd.SUBCOMMAND` are the same command, except for `compare`,",
        "`completion` and `data`, which have the first form only; `--help` prints what is written here. With",
        "`mpirun -n R` in front, R ranks share the work. The options of `train` are in [options.md](options.md), exit",
        "statuses in [run-folder.md](run-folder.md#exit-status).",
    ]
    lines = [line for name in SUBCOMMANDS if name != "train" for line in _command(name)]
    return "\n".join([*head, *lines, ""])


def _command(name: str) -> Iterator[str]:
    kind = import_module(f"distsgd.cli.{name}").Options
    options = list(options_of(kind).values())
    places = [one.name.upper() + " …" * one.is_list for one in options if one.positional]
    module = find_spec(f"distsgd.{name}")
    runs = module is not None and module.submodule_search_locations is None  # distsgd.data is a package
    command = f"python -m distsgd.{name}" if runs else f"distsgd {name}"
    named = len(options) > len(places)
    usage = " ".join([command, *places, *(["[--option value …]"] if named else [])])
    yield from ("", f"## {name}", "", f"`{usage}`", "", _escaped(getdoc(kind) or ""))
    if options:
        yield from ("", *_rows(options))


def _table(title: str, options: Iterable[Option]) -> Iterator[str]:
    yield from ("", f"## {title}", "", *_rows(options))


def _rows(options: Iterable[Option]) -> Iterator[str]:
    yield from ("| option | value | what it does |", "| --- | --- | --- |")
    for option in options:
        if option.positional:
            yield f"| `{option.name.upper()}` |  | {_escaped(option.text)} |"
            continue
        names = " ".join(f"`{name}`" for name in (option.flag, option.short) if name)
        if option.kind is bool:
            names += f" `--no-{option.flag[2:]}`"
        several = " …" if option.is_list else ""
        value = " ".join(f"`{choice}`" for choice in option.choices) or f"`{option.metavar}{several}`"
        shown = "" if option.kind is bool else value.replace("|", "\\|")
        needed = " Required." if option.default is REQUIRED else ""
        yield f"| {names} | {shown} | {_escaped(option.text)}{needed} |"


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "|<>*_[]" else c for c in text)


if __name__ == "__main__":
    KEYWORDS.write_text(keywords(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    COMMANDS.write_text(commands(), encoding="utf-8")
