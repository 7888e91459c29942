"""Reads a configuration from a TOML file or another mapping, such as a checkpoint's document or fit's options."""

from __future__ import annotations

import tomllib
import types
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from distsgd.core.errors import ConfigurationError
from distsgd.run.config import TrainConfig, field_names

RENAMED = {"logical_ranks": "microbatches"}
"""Present names of options by their former ones, which are refused."""
_CONFIG_SIZE_LIMIT = 1_000_000  # bytes


def read_toml(path: Path) -> TrainConfig:
    """The configuration in a TOML file. Raises ConfigurationError with one sentence."""
    from distsgd.core.files import read_regular

    try:
        document = tomllib.loads(read_regular(path, _CONFIG_SIZE_LIMIT).decode())
    except OSError as error:
        raise ConfigurationError(f"could not read the configuration {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, and of numbers with too many digits
        raise ConfigurationError(f"{path} is not a TOML file: {error}") from None
    return from_mapping(document, str(path))


def from_mapping(document: dict[str, Any], source: str) -> TrainConfig:
    """The configuration with these values, dashes and underscores alike; `source` names them in errors."""
    kinds, names, values = get_type_hints(TrainConfig), field_names(), {}
    for key, value in document.items():
        name = key.replace("-", "_")
        name = "learning_rate" if name == "lr" else name
        if name == "same_bits":
            _check_same_bits(value, source)
            continue
        check_renamed(name, source)
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else "; see python -m distsgd.train --help"
            raise ConfigurationError(f"{source}: unknown option {key!r}{hint}")
        values[name] = _coerce(value, kinds[name], f"{source}: {name}")
    try:
        return TrainConfig(**values)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from None


def check_renamed(name: str, source: str) -> None:
    """Raises ConfigurationError for the former name of an option, with the present one."""
    if name in RENAMED:
        raise ConfigurationError(f"{source}: the option {name} is now called {RENAMED[name]}; give it by that name")


def _check_same_bits(value: Any, source: str) -> None:
    """Raises ConfigurationError unless this value of an option that no longer exists is true."""
    if value is not True:
        raise ConfigurationError(
            f"{source}: same_bits: expected true, as every run has the same bits on any number of ranks, got "
            f"{value!r}; leave it out, and start anew with --resume never"
        )


def _coerce(value: Any, kind: Any, where: str) -> Any:
    """`value` as the type `kind`: lists become tuples, whole numbers floats; anything else is refused."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        for option in get_args(kind):
            try:
                return _coerce(value, option, where)
            except ConfigurationError:
                continue
    elif origin is Literal:
        if value in get_args(kind):
            return value
    elif origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_coerce(item, get_args(kind)[0], where) for item in items)
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif kind is type(None):
        if value is None:
            return None
    elif isinstance(value, kind) and not (kind in (int, float) and isinstance(value, bool)):
        return value
    raise ConfigurationError(f"{where}: expected {_kind_name(kind)}, got {value!r}")


def _kind_name(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind_name(option) for option in get_args(kind) if option is not type(None))
    if origin is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if origin is tuple:
        return f"a list of {_kind_name(get_args(kind)[0])}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(kind, str(kind))
