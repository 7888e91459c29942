"""Makes options from arguments: defaults < TOML file < command line. Rank 0 alone does this."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from distsgd.core.components import suggestion
from distsgd.core.errors import ConfigurationError, DistsgdError
from distsgd.core.options import REQUIRED, Option, check_options, option, options_of, read
from distsgd.core.output import say_lines
from distsgd.core.version import __version__
from distsgd.run.config import OPTIONS, OWN_LOSS, TrainConfig
from distsgd.run.config_file import RENAMED, read_toml
from distsgd.run.user_code import allow_code, code_in, texts_of

_DASHES = "‐‑‒–—―−"
"""Characters that word processors and web pages make of - and --."""
_RANKS_OF_OTHERS = ("--ranks", "--nproc", "--nprocs", "--processes", "--num-processes", "--nproc-per-node", "--ntasks",
                    "--world-size")  # fmt: skip
"""What other launchers call the number of ranks."""
T = TypeVar("T")
Hint = Callable[[str, str], str | None]
"""What else to say of an unknown option, of its name and of the word after it."""


class Finished(DistsgdError):
    """The command line asked for a text alone, such as --help; it has been printed."""

    exit_status = 0


@dataclass(frozen=True)
class TrainOptions(TrainConfig):
    """Train a model on the ranks of this MPI job, with the same bits on any number of them.

    mpirun -n R in front of the command starts R ranks.
    """

    # fmt: off
    config: str | None = option(None, group="Configuration file", path=True, help=
        "A TOML file with options. Code that it names runs only where the command line names it too.")
    # fmt: on


def load_config(arguments: Sequence[str]) -> TrainConfig:
    """The configuration of `python -m distsgd.train ARGUMENTS`."""
    given = parse(TrainOptions, arguments, "python -m distsgd.train", _hint)
    path = given.pop("config", None)
    default = TrainConfig() if path is None else read_toml(Path(path))
    without_code = replace(default, **{name: OPTIONS[name].default for name in code_in(default)})
    config = allow_code(replace(without_code, **given))
    if config.loss == OWN_LOSS:
        raise ConfigurationError(f"loss {OWN_LOSS}: is an object that distsgd.fit was given; name another loss here")
    for name, value in code_in(default).items():
        if name not in given:
            values = " ".join(map(shlex.quote, texts_of(value)))
            raise ConfigurationError(
                f"{path} names code, {name} = {value!r}; to run it, add --{name} {values} to the command line"
            )
    return config


def parse_arguments(kind: type[T], arguments: Sequence[str], prog: str, hint: Hint = lambda name, after: None) -> T:
    """A dataclass of options from arguments. Raises ConfigurationError with one sentence, or Finished."""
    options = kind(**parse(kind, arguments, prog, hint))
    check_options(options)
    return allow_code(options)


def parse(kind: type, arguments: Sequence[str], prog: str, hint: Hint = lambda name, after: None) -> dict[str, Any]:
    """The options that are given, by name. Raises ConfigurationError with one sentence, or Finished."""
    options, parser = options_of(kind), _parser(kind, prog)
    if asked := {"-h", "--help", "--version"} & set(arguments):
        say_lines(f"distsgd {__version__}" if asked == {"--version"} else parser.format_help().rstrip())
        raise Finished
    try:
        found, rest = parser.parse_known_args(_places_first(options, _plain(options, arguments, hint)))
        if rest:
            raise ConfigurationError(_unexpected(rest[0], arguments, options))
    except (argparse.ArgumentError, ConfigurationError) as error:
        problem = str(error).removeprefix("argument ").replace("expected one argument", "expected a value after it")
        raise ConfigurationError(f"{problem} (see {prog} --help)") from None
    return {name: tuple(value) if options[name].is_list else value for name, value in vars(found).items()}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(message)


def spellings(options: Mapping[str, Option]) -> dict[str, str]:
    """The options' names by all that the command line may call them, with dashes."""
    named = {name: one for name, one in options.items() if not one.positional}
    found = {one.flag: name for name, one in named.items()}
    found |= {one.short: name for name, one in named.items() if one.short}
    return found | {f"--no-{one.flag[2:]}": name for name, one in named.items() if one.kind is bool}


def _plain(options: Mapping[str, Option], arguments: Sequence[str], hint: Hint) -> list[str]:
    """The arguments with dashes in names. Raises ConfigurationError for unknown options, and for those given twice."""
    names, plain = spellings(options), list[str]()
    given: dict[str, list[str]] = {}
    for place, word in enumerate(arguments):
        spelled, equals, value = word.partition("=")
        flag = spelled.replace("_", "-")
        if not word.startswith("-") or word == "-" or word[1] in "0123456789.":
            if word.startswith("-") and plain and plain[-1] in names and not options[names[plain[-1]]].is_list:
                plain[-1] += f"={word}"  # argparse takes -1e-3 for an option
            else:
                plain.append(word)
        elif flag in names:
            if equals and options[names[flag]].kind is bool:
                raise ConfigurationError(_no_value(options[names[flag]], value))
            given.setdefault(names[flag], []).append(flag)
            plain.append(flag + equals + value)
        else:
            after = value if equals else next(iter(arguments[place + 1 :]), "")
            raise ConfigurationError(hint(spelled, after) or f"unknown option {spelled}{suggestion(flag, names)}")
    for name, flags in given.items():
        if len(flags) > 1:
            raise ConfigurationError(_given_twice(flags, options[name].is_list))
    return plain


def _places_first(options: Mapping[str, Option], plain: Sequence[str]) -> list[str]:
    """The arguments with those that have no name first: argparse would end a list of them at the first option."""
    names, places, others = spellings(options), list[str](), list[str]()
    values = 0.0  # how many of the next words belong to the option before them
    for word in plain:
        flag, equals, _ = word.partition("=")
        if flag in names:
            one = options[names[flag]]
            values = 0 if equals or one.kind is bool else inf if one.is_list else 1
            others.append(word)
        elif values:
            values -= 1
            others.append(word)
        else:
            places.append(word)
    return places + others


def _unexpected(word: str, arguments: Sequence[str], options: Mapping[str, Option]) -> str:
    """What to say of an argument that belongs to no option."""
    names = spellings(options)
    place = list(arguments).index(word)
    before = names.get(arguments[place - 1].replace("_", "-")) if place else None
    if before is not None and options[before].kind is bool:
        return _no_value(options[before], word)
    name = word.partition("=")[0].lstrip(_DASHES)
    near = suggestion(f"--{name}", [*names, "--help", "--version"])
    begins = ", which begins with another dash than -" if word[:1] in _DASHES else ""
    return f"unexpected argument {word!r}{begins}{near}"


def _no_value(one: Option, value: str) -> str:
    return f"{one.flag} takes no value, got {value!r}; give {one.flag} or --no-{one.flag[2:]} alone"


def _given_twice(flags: Sequence[str], is_list: bool) -> str:
    if len(set(flags)) > 1:
        return f"{' and '.join(dict.fromkeys(flags))} set the same option; give one of them"
    return f"{flags[0]} is given {len(flags)} times; give it once" + (", with all its values" if is_list else "")


def _hint(name: str, after: str) -> str | None:
    """What to say of an option that distsgd.train doesn't have, but something else."""
    if joined := re.fullmatch(r"(-np?)(\d+)", name):
        name, after = joined.groups()
    start = f"mpirun -n {after or 'R'} python -m distsgd.train …"
    if name.replace("_", "-") in _RANKS_OF_OTHERS:
        return f"{name}: the number of ranks is an option of mpirun: {start}"
    if name in ("-n", "-np", "--n", "--np"):
        return f"{name} is an option of mpirun: start ranks with {start}"
    renamed = RENAMED.get(name[2:].replace("-", "_"))
    return None if renamed is None else f"the option {name} is now called --{renamed}; give it by that name"


def with_options(arguments: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Arguments that have been parsed, with these options, by name with dashes, in place of what they give them."""
    kept, words = [], iter(arguments)
    for word in words:
        name, equals, _ = word.partition("=")
        if name.startswith("--") and name[2:].replace("_", "-") in values:
            if not equals:
                next(words)
        else:
            kept.append(word)
    return kept + [word for name, value in values.items() for word in (f"--{name}", value)]


def _parser(kind: type, prog: str) -> _Parser:
    """An argparse parser of the options, in their groups, with what `--help` prints."""
    options = options_of(kind).values()
    places = [one.name.upper() + " …" * one.is_list for one in options if one.positional]
    usage = " ".join([prog, *places, "[--option value …]"])
    parser = _Parser(prog, usage, kind.__doc__, add_help=False, exit_on_error=False, allow_abbrev=False)
    vars(parser).update(color=False, suggest_on_error=False)  # the same text on every version of Python
    add_options(parser, kind)
    return parser


def add_options(parser: argparse.ArgumentParser, kind: type) -> dict[str, argparse.Action]:
    """Adds the options of a dataclass to a parser; returns argparse's own objects for them, by name."""
    actions: dict[str, argparse.Action] = {}
    for title, group in groupby(options_of(kind).values(), attrgetter("group")):
        arguments = parser.add_argument_group(title)
        actions |= {one.name: _add_option(arguments, one) for one in group}
    about = parser.add_argument_group("Help")
    about.add_argument("-h", "--help", action="help", help="Print this text.")
    about.add_argument("--version", action="version", help="Print the version.")
    return actions


def _read(word: str, kind: Any, one: Option) -> Any:
    """A word of the command line as a value. Raises ConfigurationError."""
    try:
        return read(word, kind, one.flag, text=True)
    except ConfigurationError as error:
        advice = ""
        if one.is_list and "," in word:
            advice = f"; separate them with spaces: {one.flag} {' '.join(word.strip('[]()').replace(',', ' ').split())}"
        elif word[:1] in _DASHES:
            advice = "; begin a negative number with the plain -"
        raise ConfigurationError(f"{error}{advice}") from None


def _add_option(group: argparse._ArgumentGroup, one: Option) -> argparse.Action:
    settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": one.text.replace("%", "%%")}
    if one.kind is bool:
        return group.add_argument(one.flag, action=argparse.BooleanOptionalAction, **settings)
    item = get_args(one.kind)[0] if one.is_list else one.kind
    nargs = ("+" if one.default is REQUIRED else "*") if one.is_list else None
    settings |= {"type": lambda word: _read(word, item, one), "nargs": nargs}
    if one.positional:
        return group.add_argument(one.name, metavar=one.name.upper(), **settings)
    names = [one.flag, one.short] if one.short else [one.flag]
    return group.add_argument(*names, metavar=one.metavar, required=one.default is REQUIRED, **settings)
