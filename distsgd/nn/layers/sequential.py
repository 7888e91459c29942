"""Layers one after the other, each under its own name."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeAlias

from distsgd.core.device import Array, Shape
from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.layers.base import Backward, DataLayer, Layer, StatefulLayer, join

_Step: TypeAlias = tuple[str, Callable[[Views, Array, Batch, str], tuple[Array, Backward]], str]
"""A layer's name, its forward or forward_on_data, and its path."""


class Composite(DataLayer, StatefulLayer):
    """Layers with names. Names of parameters, state and statistics begin with the layer's name and a dot."""

    @property
    @abstractmethod
    def _named(self) -> tuple[tuple[str, Layer], ...]:
        """The layers by their names, in order."""

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return {join(name, key): s for name, layer in self._named for key, s in layer.parameter_shapes().items()}

    def state_shapes(self) -> Mapping[str, Shape]:
        return {join(name, key): s for name, layer in self._stateful for key, s in layer.state_shapes().items()}

    def statistics_shapes(self) -> Mapping[str, Shape]:
        return {join(name, key): s for name, layer in self._stateful for key, s in layer.statistics_shapes().items()}

    def initialize(self, params: Views, seed: int, path: str) -> None:
        for name, layer in self._named:
            layer.initialize(params.scope(name), seed, join(path, name))

    def initialize_state(self, state: Views) -> None:
        for name, layer in self._stateful:
            layer.initialize_state(state.scope(name))

    def combine_statistics(self, first: Views, second: Views) -> None:
        for name, layer in self._stateful:
            layer.combine_statistics(first.scope(name), second.scope(name))

    def combine_pairs(self, first: Views, second: Views) -> None:
        for name, layer in self._stateful:
            layer.combine_pairs(first.scope(name), second.scope(name))

    def update_state(self, state: Views, statistics: Views) -> None:
        for name, layer in self._stateful:
            layer.update_state(state.scope(name), statistics.scope(name))

    @cached_property
    def _stateful(self) -> tuple[tuple[str, StatefulLayer], ...]:
        return tuple((name, layer) for name, layer in self._named if isinstance(layer, StatefulLayer))


@dataclass(frozen=True, init=False)
class Sequential(Composite):
    """y := layerₖ(… layer₂(layer₁(x))).

    A layer's parameters, state and statistics have its name and a dot in front, such as dense1.weight.

    Parameters
    ----------
    layers : iterable of Layer
        At least one layer.
    names : iterable of str, optional
        A name for each; None for their kinds, counted from 1: dense1, activation1, dense2, …
    """

    layers: tuple[Layer, ...]
    names: tuple[str, ...]

    kind: ClassVar[str] = "sequential"

    def __init__(self, layers: Iterable[Layer], names: Iterable[str] | None = None) -> None:
        layers = tuple(layers)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "names", _count_kinds(layers) if names is None else tuple(names))
        self._check()

    def _check(self) -> None:
        if not self.layers:
            raise ConfigurationError("sequential: expected at least one layer, got none")
        for layer in self.layers:
            if not isinstance(layer, Layer):
                raise ConfigurationError(f"sequential: expected layers, got {layer!r}; wrap it in a Layer")
        if len(self.names) != len(self.layers):
            raise ConfigurationError(
                f"sequential: expected a name for each of the {len(self.layers)} layers, got {len(self.names)} names"
            )
        for name, times in Counter(self.names).items():
            if times > 1 or not name or "." in name:
                raise ConfigurationError(
                    f"sequential: expected names that are different, not empty and without dots, got {name!r}"
                    + (f" {times} times" if times > 1 else "")
                )

    def output_shape(self, shape: Shape) -> Shape:
        for name, layer in self._named:
            try:
                shape = layer.output_shape(shape)
            except ConfigurationError as error:
                raise ConfigurationError(f"{name}: {error}") from None
        return shape

    def multiply_adds(self, shape: Shape) -> int:
        total = 0
        for layer in self.layers:
            total += layer.multiply_adds(shape)
            shape = layer.output_shape(shape)
        return total

    def compute(self, params: Views, x: Array, batch: Batch, path: str, needs_dx: bool) -> tuple[Array, Backward]:
        backwards: list[tuple[str, Backward]] = []
        for name, forward, inside in self._steps(path, on_data=not needs_dx):
            x, backward_of_layer = forward(params.scope(name), x, batch, inside)
            backwards.append((name, backward_of_layer))

        def backward(dy: Array, grads: Views) -> Array | None:
            d: Array | None = dy
            for name, backward_of_layer in reversed(backwards):
                if d is None:
                    self._check_rest(name)
                    return None
                d = backward_of_layer(d, grads.scope(name))
            return d

        return x, backward

    def _check_rest(self, name: str) -> None:
        """Raises ConfigurationError where a layer up to `name` needs the dx that the next layer didn't return."""
        names = [known for known, _ in self.computed]
        rest = names.index(name) + 1
        if any(layer.parameter_shapes() for _, layer in self.computed[:rest]):
            raise ConfigurationError(
                f"{names[rest]}: backward returned None, but {name} before it needs dx; return the gradient of the "
                "layer's input"
            )

    @cached_property
    def _named(self) -> tuple[tuple[str, Layer], ...]:
        return tuple(zip(self.names, self.layers, strict=True))

    @cached_property
    def computed(self) -> tuple[tuple[str, Layer], ...]:
        """The layers that are computed: two that are faster together are one, under the first one's name."""
        found: list[tuple[str, Layer]] = []
        for name, layer in self._named:
            together = found[-1][1].fused(layer) if found else None
            if together is None:
                found.append((name, layer))
            else:
                found[-1] = (found[-1][0], together)
        return tuple(found)

    def _steps(self, path: str, on_data: bool) -> tuple[_Step, ...]:
        """What to call for each layer; kept for each path, because joining names costs more than a small GEMM.

        On data, no gradient is needed before the first layer with parameters.
        """
        steps = self._kept_steps.get((path, on_data))
        if steps is None:
            found: list[_Step] = []
            still_data = on_data
            for name, layer in self.computed:
                found.append((name, layer.forward_on_data if still_data else layer.forward, join(path, name)))
                still_data = still_data and not layer.parameter_shapes()
            steps = self._kept_steps[path, on_data] = tuple(found)
        return steps

    @cached_property
    def _kept_steps(self) -> dict[tuple[str, bool], tuple[_Step, ...]]:
        return {}


def _count_kinds(layers: Iterable[Layer]) -> tuple[str, ...]:
    counter: Counter[str] = Counter()
    names = []
    for layer in layers:
        kind = getattr(layer, "kind", "") or type(layer).__name__.lower()
        counter[kind] += 1
        names.append(f"{kind}{counter[kind]}")
    return tuple(names)
