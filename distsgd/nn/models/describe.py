"""A model in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from typing import Any

from distsgd.nn import layers as nn

_OF_IMAGES = (nn.Convolution, nn.MaxPooling, nn.AveragePooling, nn.GlobalAveragePooling)


def describe(layer: nn.Layer) -> str:
    """The layer in one line: `64-128-10 relu` for dense layers, the list of layers, as --model takes it, for images."""
    parts = list(_flatten(layer))
    if any(isinstance(part, _OF_IMAGES) for part in parts):
        return _as_list(parts)
    widths: list[int] = []
    others: dict[str, None] = {}  # an ordered set
    for part in parts:
        if isinstance(part, nn.Dense):
            widths += [part.fan_out] if widths else [part.fan_in, part.fan_out]
        elif isinstance(part, nn.BatchNormalization):
            others[part.kind] = None
        elif not isinstance(part, nn.Flatten):
            others[_words(part)] = None
    return " ".join(filter(None, ["-".join(map(str, widths)), *others]))


def _flatten(layer: nn.Layer) -> Iterator[nn.Layer]:
    if isinstance(layer, nn.Sequential):
        for inside in layer.layers:
            yield from _flatten(inside)
    else:
        yield layer


def _as_list(parts: list[nn.Layer]) -> str:
    """The layers with commas between; residual blocks in a row are counted, with the activation after each."""
    kept = [
        part
        for before, part in pairwise([None, *parts])
        if not (isinstance(part, nn.Flatten) or (isinstance(before, nn.Residual) and isinstance(part, nn.Activation)))
    ]
    found = []
    for words, alike in groupby(_words(part) for part in kept if part is not None):
        count = len(list(alike))
        found += [f"{count} residual blocks"] if words == "residual block" and count > 1 else [words] * count
    return ", ".join(found)


def _words(part: nn.Layer) -> str:
    """One layer, in the words that --model has for it where it has any."""
    for kind, words in _WORDS.items():
        if isinstance(part, kind):
            return words(part)
    return part.kind or type(part).__name__.lower()


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}" if size[0] != size[1] else str(size[0])


def _conv(part: Any) -> str:
    window = part.window
    padding = {"valid": "", "same": " same", 0: ""}.get(part.padding, f" padding {part.padding}")
    stride = "" if window.stride == (1, 1) else f" stride {_by(window.stride)}"
    return f"conv {part.filters} {window.size[0]}x{window.size[1]}{padding}{stride}"


def _pool(part: Any) -> str:
    window = part.window
    stride = "" if window.stride == window.size else f" stride {_by(window.stride)}"
    return f"{'pool' if isinstance(part, nn.MaxPooling) else 'average-pool'} {_by(window.size)}{stride}"


_WORDS: dict[type[nn.Layer], Callable[[Any], str]] = {
    nn.Activation: lambda part: str(part.name),
    nn.Dropout: lambda part: f"{'channel-' if part.channels else ''}dropout {part.rate:g}",
    nn.BatchNormalization: lambda part: "batch-norm",
    nn.Dense: lambda part: f"dense {part.fan_out}",
    nn.Convolution: _conv,
    nn.MaxPooling: _pool,
    nn.AveragePooling: _pool,
    nn.GlobalAveragePooling: lambda part: "global-pool",
    nn.Residual: lambda part: "residual block",
}
