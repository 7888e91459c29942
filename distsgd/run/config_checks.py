"""What single options of a run may be, beyond their types and choices. Each check raises ConfigurationError."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from distsgd.core.components import suggestion, wrong_name
from distsgd.core.device_options import FULL
from distsgd.core.errors import ConfigurationError
from distsgd.core.kernel_family import AUTO, NAMES, is_name
from distsgd.run.user_code import names_code
from distsgd.training.intervals import parse_duration
from distsgd.training.metrics import METRICS

MOST_CLASSES = 1_000_000
"""More serve no purpose and exceed any machine."""

_ELSEWHERE = {
    **{("dtype", name): "precision float16" for name in ("float16", "fp16", "half")},
    **{("dtype", name): "precision bfloat16" for name in ("bfloat16", "bf16")},
    ("dtype", "tf32"): "precision tf32",
    **{("precision", name): "dtype float64" for name in ("float64", "fp64", "double")},
    **{("early_stopping", name): "early-stopping none" for name in ("off", "no", "never", "false")},
}
"""Values that another option stands for, by option and value."""


def check_max_time(text: str, name: str) -> None:
    """A duration, `auto`, `auto-` with a duration, or `never`."""
    if text not in ("auto", "never"):
        parse_duration(text.removeprefix("auto-"), name)


def check_resume(text: str, name: str) -> None:
    """Refuses what looks like a mistyped `auto` or `never`."""
    if text not in ("auto", "never") and (near := suggestion(text, ("auto", "never"))):
        raise ConfigurationError(f"{name}: expected auto, never, or the path of a checkpoint, got {text!r}{near}")


def check_metrics(names: tuple[str, ...], name: str) -> None:
    """Known metrics, or functions of the user's."""
    for one in names:
        if one not in METRICS and not names_code(one):
            raise wrong_name(name, one, METRICS, ", or file.py:function")


def check_callbacks(names: tuple[str, ...], name: str) -> None:
    """Callbacks of the user's."""
    for one in names:
        if not names_code(one):
            raise ConfigurationError(f"{name}: expected file.py:name of a distsgd.Callback, got {one!r}")


def check_kernels(text: str, name: str) -> None:
    """A family of kernels, or `auto`."""
    if text != AUTO and not is_name(text):
        raise wrong_name(name, text, (AUTO, *NAMES))


def parse_fold(text: str, name: str) -> tuple[int, int]:
    """(2, 5) of `2/5`: the second of five parts."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    part, parts = (int(found[1]), int(found[2])) if found is not None else (0, 0)
    if not 1 <= part <= parts or parts < 2:
        raise ConfigurationError(f"{name}: expected one of two or more parts, such as 2/5, got {text!r}")
    return part, parts


def parse_shares(text: str, name: str) -> tuple[int, ...]:
    """(11, 5) of `11,5`; () of `equal` and `auto`."""
    if text in ("equal", "auto"):
        return ()
    numbers = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]{0,8}", number) for number in numbers):
        raise ConfigurationError(
            f"{name}: expected equal, auto, or how many microbatches each rank computes, at least 1, such as 11,5, got "
            f"{text!r}"
        )
    return tuple(map(int, numbers))


def parse_size(text: str, name: str) -> int:
    """Bytes of `256MB`, `1.5GB` or `64MiB`."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?([kKMGT]?)(i?)B", text.strip())
    size = 0
    if found is not None:
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))
    if not 0 < size < 1 << 60:
        raise ConfigurationError(f"{name}: expected an amount of memory such as 256MB or 1GB, got {text!r}")
    return size


def size_text(size: int) -> str:
    """A number of bytes in the one form in which it is kept: the shortest, of equal ones the decimal.

    >>> size_text(256_000_000), size_text(1_000_000_000), size_text(64 << 20)
    ('256MB', '1GB', '64MiB')
    """
    units = {f"{letter}B": 1000**power for power, letter in enumerate(("", "k", "M", "G", "T"))}
    units |= {f"{letter}iB": 1024 ** (power + 1) for power, letter in enumerate("KMGT")}
    return min((f"{size // unit}{name}" for name, unit in units.items() if size % unit == 0), key=len)


def check_order(shuffle_buffer: str | None, needs_it: Mapping[str, bool], others: Mapping[str, bool]) -> None:
    """How the options of the order of examples go together: which are given that need the buffer, and in `others` those
    that visit examples otherwise."""
    if shuffle_buffer is None:
        for name, is_given in needs_it.items():
            if is_given:
                raise ConfigurationError(f"{name}: goes with --shuffle-buffer alone; leave it out, or give both")
        return
    if wrong := [name for name, is_given in others.items() if is_given]:
        raise ConfigurationError(
            f"shuffle_buffer: visits examples block by block, each once an epoch, which {wrong[0]} doesn't; leave one "
            "of them out"
        )


def check_loss_scale(scale: int, name: str) -> None:
    """A power of two."""
    if scale & (scale - 1):
        raise ConfigurationError(f"{name}: expected a power of two, got {scale}; others don't divide out")


def check_precision(precision: str, scale: int | None, dtype: str) -> None:
    """How --precision goes together with other options."""
    if precision != FULL and dtype != FULL:
        raise ConfigurationError(
            f"precision {precision}: goes with --dtype float32 alone, got {dtype}; leave one of them out"
        )
    if scale is not None and precision != "float16":
        raise ConfigurationError(
            f"loss_scale: goes with --precision float16 alone, got {precision}, whose range needs none; leave it out"
        )


def check_wire(wire: str, groups: int | None, microbatches: int, dtype: str, shares: str) -> None:
    """How --wire goes together with other options."""
    if wire == FULL:
        if groups is not None:
            raise ConfigurationError("wire_groups: goes with --wire bfloat16 alone; leave it out, or give both")
        return
    if dtype != FULL:
        raise ConfigurationError(f"wire {wire}: goes with --dtype float32 alone, got {dtype}; leave one of them out")
    if shares != "equal":
        raise ConfigurationError(
            f"shares {shares}: would cut groups of microbatches, which --wire {wire} keeps whole; leave one of them out"
        )
    if groups is not None and (groups & (groups - 1) or groups > microbatches):
        raise ConfigurationError(
            f"wire_groups: expected a power of two, of at most {microbatches} microbatches, got {groups}"
        )


def number_of_classes(words: tuple[str, ...]) -> int | None:
    """What --classes says: a number, or as many as there are names; None where it says nothing."""
    if not words:
        return None
    if len(words) == 1:
        if not (words[0].isascii() and words[0].isdigit() and 2 <= int(words[0][:10]) <= MOST_CLASSES):
            raise ConfigurationError(
                f"classes: expected a number from 2 to {MOST_CLASSES}, or two or more names, got {words[0]!r}"
            )
        return int(words[0])
    if len(set(words)) < len(words) or not all(map(str.strip, words)):
        raise ConfigurationError(f"classes: expected different names, got {' '.join(map(repr, words))}")
    return len(words)


def class_names(words: tuple[str, ...], classes: int) -> tuple[str, ...]:
    """The names of so many classes, as --classes says them. Raises ConfigurationError where it says another number."""
    named = number_of_classes(words)
    if named not in (None, classes):
        got = f"{classes} classes" if classes else "values and not classes"
        raise ConfigurationError(f"classes: {named} are named, the targets are {got}; name those that there are")
    return words if len(words) > 1 else ()


def check_elsewhere(name: str, given: str, choices: Sequence[str]) -> None:
    """Raises ConfigurationError for a value that another option stands for; `choices` are this option's own."""
    if meant := _ELSEWHERE.get((name, str(given).lower())):
        expected = ", ".join(choices)
        raise ConfigurationError(f"{name}: expected one of {expected}, got {given!r}; did you mean --{meant}?")
