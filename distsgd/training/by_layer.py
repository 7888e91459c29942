"""Views that report how far a model is: which parameters it needs next, and which gradients it has written.

A `Sequential` asks for the views of each layer by name: for its parameters when it comes to the layer in forward, and
for its gradients in backward, when those of all later layers are written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from distsgd.core.device import Array
from distsgd.core.layout import Layout, Views
from distsgd.nn.layers.sequential import Sequential
from distsgd.nn.objective import Objective, Supervised
from distsgd.parallel.sectioned_reduction import SectionedReduction
from distsgd.training.steps import StepParts


@final
class LayerViews(Views):
    """Views that call a function with the end of a layer's elements where its views are asked for.

    Parameters
    ----------
    views
        The same arrays.
    layout
        Where they lie.
    asked
        Called before `scope` returns; with the end of the buffer before a single array is taken.
    """

    __slots__ = ("_asked", "_ends")

    def __init__(self, views: Views, layout: Layout, asked: Callable[[int], None], writable: bool) -> None:
        super().__init__(dict(views), views.flat, writable)
        self._asked, self._ends = asked, {"": layout.size}
        for name, span in layout.spans.items():
            self._ends[name.partition(".")[0]] = span.stop

    def __getitem__(self, name: str) -> Array:
        self._asked(self._ends[""])
        return super().__getitem__(name)

    def scope(self, prefix: str) -> Views:
        end = self._ends.get(prefix)
        if end is not None:  # the layer has parameters
            self._asked(end)
        return super().scope(prefix)


def goes_by_layer(objective: Objective, layout: Layout) -> bool:
    """Whether a model computes one layer after the other, whose parameters lie in this order."""
    if not (isinstance(objective, Supervised) and objective.overwrites_gradients()):
        return False
    layers = [name.partition(".")[0] for name in layout.names]
    return type(objective.model) is Sequential and layers == sorted(layers, key=objective.model.names.index)


def views_by_layer(parts: StepParts) -> tuple[Views, Callable[[Array], Views]]:
    """(the parameters, read-only: ranks may share them; what makes the views of a buffer of gradients).

    Where messages travel meanwhile and the model goes by layer, both report it to the reduction.
    """
    reduction, layout = parts.reduction, parts.layout
    params = layout.views(reduction.params).read_only()
    if not isinstance(reduction, SectionedReduction):
        return params, layout.views
    reduction.alone = parts.workers.count == 1  # those that update may be more than those that call the model
    reduction.in_order = goes_by_layer(parts.objective, layout)
    if not reduction.in_order:
        return params, layout.views

    def await_params(end: int) -> None:
        reduction.await_params(end)  # looked up in each call: a profile puts a timed one in its place

    last = max(reduction.rows)
    if parts.workers.count > 1 or last[1] - last[0] > 1:
        return LayerViews(params, layout, await_params, False), layout.views

    def views(flat: Array) -> Views:
        of_flat = layout.views(flat)
        is_last = flat is reduction.rows[last]
        return LayerViews(of_flat, layout, reduction.complete, True) if is_last else of_flat

    return LayerViews(params, layout, await_params, False), views
