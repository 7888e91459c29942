"""Reads a configuration from a TOML file or another mapping, such as a checkpoint's document or fit's options."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distsgd.core.components import suggestion
from distsgd.core.errors import ConfigurationError
from distsgd.core.options import read
from distsgd.run.config import NOT_WRITTEN, OPTIONS, TrainConfig

RENAMED = {"logical_ranks": "microbatches"}
"""Present names of options by their former ones, which are refused."""
SHORT = {one.short.removeprefix("--"): name for name, one in OPTIONS.items() if one.short}
"""Options by their short names, which mean the same everywhere."""
_CONFIG_SIZE_LIMIT = 250_000
"""Bytes; a weight for each of 10,000 classes takes 200,000."""
_WORK_LIMIT = 5_000_000
"""Parts of keys times lines: tomllib looks at all tables around a key for each part of it and each key below it."""
_NUMBER = re.compile(r"\d\.\d+(?=[,\]\s])")


def read_toml(path: Path) -> TrainConfig:
    """The configuration in a TOML file. Raises ConfigurationError with one sentence."""
    from distsgd.core.files import expanded, read_regular

    path = expanded(path)
    try:
        text = read_regular(path, _CONFIG_SIZE_LIMIT).decode("utf-8-sig")
        _check_work(text)
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"could not read the configuration {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, and of numbers with too many digits
        raise ConfigurationError(f"{path} is not a TOML file: {error}") from None
    return from_mapping(document, str(path))


def to_toml(config: TrainConfig) -> str:
    """The configuration as a TOML document, without what isn't set; reading it back gives the same run."""
    import tomli_w

    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(config).items()
        if value is not None and key not in NOT_WRITTEN
    }
    return tomli_w.dumps(values)


def _check_work(text: str) -> None:
    """Raises ValueError for keys that tomllib could need minutes for. A key ends with its line."""
    dots = [line.count(".") for line in _NUMBER.sub("", text).split("\n")]
    if max(dots) * (len(dots) + sum(dots)) > _WORK_LIMIT:
        raise ValueError(f"a key or a text with {max(dots)} dots; options have none")


def from_mapping(document: dict[str, Any], source: str) -> TrainConfig:
    """The configuration with these values, dashes and underscores alike; `source` names them in errors."""
    values = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        name = SHORT.get(name, name)
        if name == "same_bits":
            _check_same_bits(value, source)
            continue
        if isinstance(value, dict) and name not in OPTIONS:
            raise ConfigurationError(f"{source}: unknown table [{key}]; options stand in the file without a table")
        check_known(name, source, OPTIONS)
        if name in values:
            raise ConfigurationError(f"{source}: {name} is given twice, under two names; give it once")
        if name == "classes" and type(value) is int:
            value = str(value)
        values[name] = read(value, OPTIONS[name].kind, f"{source}: {name}")
    try:
        return TrainConfig(**values)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from None


def check_known(name: str, source: str, names: Collection[str]) -> None:
    """Raises ConfigurationError for an option that isn't one of these, with the present name or the near one."""
    if name in RENAMED:
        raise ConfigurationError(f"{source}: the option {name} is now called {RENAMED[name]}; give it by that name")
    if name not in names:
        hint = suggestion(name, names) or "; see python -m distsgd.train --help"
        raise ConfigurationError(f"{source}: unknown option {name!r}{hint}")


def _check_same_bits(value: Any, source: str) -> None:
    """Raises ConfigurationError unless this value of an option that no longer exists is true."""
    if value is not True:
        raise ConfigurationError(
            f"{source}: same_bits: expected true, as every run has the same bits on any number of ranks, got "
            f"{value!r}; leave it out, and start anew with --resume never"
        )
