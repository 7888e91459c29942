"""A model in one line."""

from __future__ import annotations

from distsgd.layers import Activation, Dense, Dropout, Layer, Sequential


def describe(layer: Layer) -> str:
    """The layer in one line: the widths of its dense layers and what else it has, such as `64-128-10 relu`."""
    widths: list[int] = []
    others: dict[str, None] = {}  # an ordered set
    for part in _flatten(layer):
        if isinstance(part, Dense):
            widths += [part.fan_out] if widths else [part.fan_in, part.fan_out]
        elif isinstance(part, Activation):
            others[part.name] = None
        elif isinstance(part, Dropout):
            others[f"dropout {part.rate:g}"] = None
        else:
            others[part.kind or type(part).__name__.lower()] = None
    return " ".join(filter(None, ["-".join(map(str, widths)), *others]))


def _flatten(layer: Layer) -> list[Layer]:
    if isinstance(layer, Sequential):
        return [part for inside in layer.layers for part in _flatten(inside)]
    return [layer]
