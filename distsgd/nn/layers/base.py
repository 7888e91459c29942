"""What a layer is: it declares parameters, initializes them, and computes forward with a closure for backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, TypeAlias

from distsgd.core.components import Component
from distsgd.core.device import Array, Shape
from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.initializers import Initializer

Backward: TypeAlias = Callable[[Array, Views], "Array | None"]
"""(dy, grads) -> dx. Writes the layer's own views in `grads` and changes neither dy nor anything that forward saw.
Only the backward of `forward_on_data` may return None in place of dx. distsgd's own layers overwrite every view; a
model with a user's layer finds all views at zero, so that such a layer may skip one, or add to it."""


def join(path: str, name: str) -> str:
    """`name` inside `path`, with a dot between them; the whole model's path is empty."""
    return f"{path}.{name}" if path else name


def initialize_arrays(params: Views, initializers: Mapping[str, Initializer], seed: int, path: str) -> None:
    """Fills each of `params` by the initializer of its name; path and name name its random numbers."""
    for name, array in params.items():
        array[...] = initializers[name](array.shape, seed, f"initialize {join(path, name)}")


def pair(value: int | tuple[int, int], what: str) -> tuple[int, int]:
    """(height, width) of a number for both, or of two numbers from 1."""
    both = value if isinstance(value, tuple) else (value, value)
    if len(both) != 2 or not all(isinstance(one, int) and one >= 1 for one in both):
        raise ConfigurationError(f"{what}: expected a number from 1, or (height, width), got {value!r}")
    return both


def image_shape(shape: Shape, kind: str, channels: int | None = None) -> tuple[int, int, int]:
    """`shape` as (channels, height, width); ConfigurationError where it is another, or has other channels."""
    if len(shape) != 3 or channels not in (None, shape[0]):
        wanted = "(channels, height, width)" if channels is None else f"({channels}, height, width)"
        raise ConfigurationError(f"{kind}: expected images of shape {wanted}, got {shape}")
    return shape[0], shape[1], shape[2]


class Layer(Component, ABC):
    """A step of a network. Layers are frozen dataclasses and own no arrays: parameters are passed in.

    A subclass overrides `output_shape` and `forward`, and where it has parameters `parameter_shapes` and `initialize`.
    Arrays are batch-last, (features, n) or (channels, height, width, n). What backward needs lives in the closure that
    forward returns, and dies with it. `kind` names the layers of a Sequential: dense1, dense2, …

    Raises
    ------
    ConfigurationError
        Where a subclass has `state_shapes` and isn't a StatefulLayer: when the class is made.

    Examples
    --------
    >>> class Double(Layer):
    ...     def output_shape(self, shape):
    ...         return shape
    ...
    ...     def forward(self, params, x, batch, path):
    ...         return 2.0 * x, lambda dy, grads: 2.0 * dy
    >>> Double().output_shape((3,))
    (3,)
    """

    kind: ClassVar[str] = ""

    keeps_state: ClassVar[bool] = False  # see StatefulLayer

    def parameter_shapes(self) -> Mapping[str, Shape]:
        """Names and shapes of the parameters, in order; none by default.

        Returns
        -------
        Mapping[str, Shape]
            Every length at least 1. The names are those by which `forward` finds its parameters.
        """
        return {}

    def initialize(self, params: Views, seed: int, path: str) -> None:
        """Fills the layer's parameters; by default nothing, for a layer without any.

        Parameters
        ----------
        params : Views
            The layer's own parameters, by name, to be overwritten.
        seed : int
            The run's seed.
        path : str
            The layer's place in the model, such as `dense1`, which names its random numbers.
        """

    def multiply_adds(self, shape: Shape) -> int:
        """Multiply-adds of forward for one example, an estimate of the work; 0 by default.

        Parameters
        ----------
        shape : tuple of int
            The shape of one example of the input.

        Returns
        -------
        int
            Their number.
        """
        return 0

    def fused(self, following: Layer) -> Layer | None:
        """One layer with this one's parameters that computes both this one and the following.

        Parameters
        ----------
        following : Layer
            The layer after this one in a Sequential.

        Returns
        -------
        Layer or None
            The layer; None, as by default, where there is none.
        """
        return None

    @abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """The shape of this layer's output for one example.

        Parameters
        ----------
        shape : tuple of int
            The shape of one example of the input, without the batch's axis.

        Returns
        -------
        Shape
            That of the output, without the batch's axis.

        Raises
        ------
        ConfigurationError
            Where the layer doesn't take such examples, with what it expects.
        """

    @abstractmethod
    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        """Computes y, and returns it with the closure that computes dx from dy.

        Parameters
        ----------
        params : Views
            The layer's own parameters, by name.
        x : array
            The input, batch-last.
        batch : Batch
            What else the layer may depend on: whether this is training, random words, running statistics.
        path : str
            The layer's place in the model, which names its random numbers and statistics.

        Returns
        -------
        y, backward
            The output, and `backward(dy, grads) -> dx`: see `Backward`.
        """

    def forward_on_data(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        """As `forward`, where x is data and its gradient is not needed: backward may return None in place of dx.

        By default this is `forward`, and dx is computed and dropped. A layer that saves work here overrides both.

        Parameters
        ----------
        params, x, batch, path
            See `forward`.

        Returns
        -------
        y, backward
            See `forward`.
        """
        return self.forward(params, x, batch, path)

    def __init_subclass__(cls, **options: object) -> None:
        # A subclass that overrides forward alone does not inherit a forward_on_data that would bypass it.
        super().__init_subclass__(**options)
        if not cls.keeps_state and hasattr(cls, "state_shapes"):
            raise ConfigurationError(
                f"{cls.__name__}: a layer with state_shapes must be a distsgd.nn.StatefulLayer, or its state would be "
                "skipped; make that its base class"
            )
        owner = next(kind for kind in cls.__mro__ if vars(kind).keys() & {"forward", "forward_on_data"})
        if "forward_on_data" not in vars(owner):
            cls.forward_on_data = Layer.forward_on_data  # type: ignore[method-assign]


class DataLayer(Layer):
    """A layer that saves the work of dx where its input is data: `compute` is both kinds of forward."""

    @abstractmethod
    def compute(self, params: Views, x: Array, batch: Batch, path: str, needs_dx: bool) -> tuple[Array, Backward]:
        """As `forward`; where dx isn't needed, as `forward_on_data`.

        Parameters
        ----------
        params, x, batch, path
            See `Layer.forward`.
        needs_dx : bool
            Whether backward has to return dx.

        Returns
        -------
        y, backward
            See `Layer.forward`.
        """

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        return self.compute(params, x, batch, path, needs_dx=True)

    def forward_on_data(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        return self.compute(params, x, batch, path, needs_dx=False)


def pair_by_pair(combine: Callable[[Views, Views], None], first: Views, second: Views) -> None:
    """Calls `combine` with the statistics of one pair after the other, of arrays that have the pairs on an axis in
    front."""
    for k in range(len(first.flat)):
        combine(*(Views({name: one[k, ...] for name, one in side.items()}, side.flat[k]) for side in (first, second)))


class StatefulLayer(Layer):
    """A layer with running statistics: state that is not trained, but moved by statistics of each minibatch.

    In training, `forward` writes a microbatch's statistics into `batch.statistics`, under the layer's path and a dot.
    The trainer combines them in the order of the tree and moves the state once a step. In evaluation the layer reads
    `batch.state`. State and statistics are never summed over ranks: what `combine_statistics` computes of two
    microbatches must not depend on which ranks had them.

    See Also
    --------
    distsgd.nn.BatchNormalization : (count, mean, M2) as statistics, mean and variance as state.
    """

    keeps_state: ClassVar[bool] = True

    @abstractmethod
    def state_shapes(self) -> Mapping[str, Shape]:
        """Names and shapes of the running statistics.

        Returns
        -------
        Mapping[str, Shape]
            In order; the arrays have the parameters' dtype.
        """

    @abstractmethod
    def statistics_shapes(self) -> Mapping[str, Shape]:
        """Names and shapes of the statistics that each microbatch reports.

        Returns
        -------
        Mapping[str, Shape]
            In order; the arrays are float64, `()` is the shape of a number.
        """

    @abstractmethod
    def initialize_state(self, state: Views) -> None:
        """Fills the running statistics with their initial values.

        Parameters
        ----------
        state : Views
            The layer's own running statistics, by name, to be overwritten.
        """

    @abstractmethod
    def combine_statistics(self, first: Views, second: Views) -> None:
        """Puts into `first` what one microbatch with the examples of both reports.

        Parameters
        ----------
        first, second : Views
            Float64 views of two neighbouring microbatches' statistics, or of combined ones; `second` stays as it is.
        """

    def combine_pairs(self, first: Views, second: Views) -> None:
        """Does the same with several pairs at once, for speed; by default one pair after the other.

        Parameters
        ----------
        first, second : Views
            As for `combine_statistics`, each array with one axis more in front: that of the pairs.
        """
        pair_by_pair(self.combine_statistics, first, second)

    @abstractmethod
    def update_state(self, state: Views, statistics: Views) -> None:
        """Moves the running statistics, in place, once a step.

        Parameters
        ----------
        state : Views
            The running statistics.
        statistics : Views
            The combined statistics of the whole minibatch, float64.
        """
