"""PyTorch modules as models: the same bits on any number of ranks, and all of distsgd's files, checks and restarts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch

from distsgd import ConfigurationError, Task
from distsgd.integrations.framework_model import EXAMPLES, FrameworkModel
from distsgd.integrations.torch_checks import (
    FirstForwards,
    check_caller,
    check_inputs,
    check_module,
    check_outputs,
    of_single_example,
    takes_gradients_itself,
)
from distsgd.integrations.torch_losses import ExampleLosses
from distsgd.integrations.torch_module import ModuleArrays, batch_first
from distsgd.nn import Array, Batch, Shape, Views

__all__ = ["TorchModel"]

_FIRST = 2
"""Numbers of forwards that are looked at closely."""
_EVALUATED_TOGETHER, _LEAST_TOGETHER = 1 << 18, 32
"""Numbers of inputs up to which examples are evaluated together, and the least number of examples."""


@dataclass(eq=False)
class TorchModel(FrameworkModel):
    """A PyTorch module with its loss, for `distsgd.fit`: on the CPU, with one thread on each rank.

    Its parameters lie in distsgd's memory while it trains. At the end they have the best values, in their own memory,
    on every rank, and so have its buffers. Initial values are the module's. Inputs and targets are passed as they are
    stored, batch first: floats in the parameters' dtype, integer targets as int64, images in the memory format of the
    weights. Of a dictionary of arrays, `fit(model, {"ids": ids, "mask": mask}, y)`, each is passed by its name.

    `module.train()` and `.eval()` are called, for all parts. Dropout and all other random numbers, of PyTorch's,
    NumPy's and Python's default generators, are a function of (seed, epoch, step, microbatch). The caller's generators,
    number of threads and modes come back.

    Parameters
    ----------
    module : torch.nn.Module
        The module, on the CPU, its parameters float32 or float64. Those with requires_grad=False stay as they are, and
        tied ones are one parameter, by the first of their names.
    loss : module or function
        A loss of PyTorch's, such as `nn.CrossEntropyLoss()` or `F.mse_loss`, or a function of (outputs, targets) that
        returns a loss for each example, (n,), or one number, of which `reduction` says what it is.
    reduction : str, optional
        "mean" or "sum": what a single number that a user's loss returns is, over the examples. Losses are checked once,
        by those of halves of a microbatch. "microbatch": the examples' losses, or their mean, depend on the other
        examples of a microbatch, as contrastive ones do, and so on the number of microbatches.
    outputs : function, optional
        What is measured and predicted, (n, …), of what the module returns. By default all of it: class probabilities
        under a cross-entropy.
    declared_task : Task, optional
        What the outputs stand for; by default what a loss of PyTorch's says: classes, answers or values.
    running_buffers : sequence of str, default ()
        Names of buffers that forward changes, besides those of normalizations.

    Raises
    ------
    ConfigurationError
        For modules on another device, compiled ones, lazy ones without shapes, and parameters of other dtypes. When it
        trains: for a loss that isn't what it is declared as, and a forward that writes to parameters or replaces them.

    Notes
    -----
    Losses are added over examples, and divided once by their number. A loss of PyTorch's with reduction="mean" is the
    mean over the other axes of each example, also where `ignore_index` leaves some out or `weight` weighs classes:
    PyTorch divides by the number of those that are left, or by their weights.

    A forward in training starts from the step's running statistics. The next ones are the mean, weighted by examples,
    of what the microbatches' forwards leave, added up in the tree's order. Where batches are normalized, each of
    several microbatches has at least 8 examples.

    Examples
    --------
    >>> import distsgd
    >>> _ = torch.manual_seed(0)
    >>> model = TorchModel(torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss())
    >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 1])
    >>> result = distsgd.fit(model, x, y, epochs=2, batch_size=4, microbatches=2)
    >>> result.predict(x).shape, bool(np.array_equal(result.params["bias"], model.module.bias.detach()))
    ((4, 3), True)
    """

    module: Any = field(compare=False)
    loss: Any
    reduction: str | None = None
    outputs: Callable[[Any], Any] | None = None
    declared_task: Task | None = None
    running_buffers: Sequence[str] = ()
    structure: Any = field(init=False, repr=False)
    initial_values: Any = field(init=False, repr=False)

    thread_safe = False
    how_to_repeat = (
        "draw random numbers from the default generators of PyTorch, NumPy and Python, which are seeded for each "
        "microbatch, and keep nothing from one forward to the next"
    )

    def __post_init__(self) -> None:
        check_module(self.module)
        self._losses = ExampleLosses(self.loss, self.reduction)
        self._arrays = ModuleArrays(self.module, tuple(self.running_buffers))
        self._wide: ModuleArrays | None = None
        self._first = FirstForwards()
        self._is_running = False

    def user_functions(self) -> tuple[Callable[..., Any], ...]:
        return (self.module,)

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return self._arrays.parameter_shapes()

    def state_shapes(self) -> Mapping[str, Shape]:
        return self._arrays.state_shapes()

    def statistics_shapes(self) -> Mapping[str, Shape]:
        return self._arrays.statistics_shapes()

    def initialize(self, params: Views, state: Views, seed: int) -> None:
        check_module(self.module)  # hooks come to it after it is made
        check_caller()
        self._first = FirstForwards()
        self._arrays.initialize(params, state)

    def environment(self) -> Mapping[str, str]:
        doubt = {} if self._first.doubt is None else {"doubt": self._first.doubt}
        return doubt | {
            "PyTorch's version": str(torch.__version__),
            "PyTorch's CPU kernels": str(torch.backends.cpu.get_cpu_capability()),
            "PyTorch's precision of products": str(torch.get_float32_matmul_precision()),
            "PyTorch's use of oneDNN": str(torch.backends.mkldnn.enabled),
        }

    def loss_and_grad(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        with self._prepared(params, batch) as arrays, torch.enable_grad():
            is_first = batch.training and arrays is self._arrays and self._first.calls < _FIRST
            if is_first:
                self._first.before(arrays.module, params)
            inputs, targets, weights = self._tensors(arrays, batch)
            try:
                found = self._call(arrays, inputs)
            except ValueError as error:
                raise of_single_example(error, len(batch)) from error
            loss = self._losses.total(found, targets, weights, len(batch))
            if not loss.requires_grad:
                raise ConfigurationError(
                    "TorchModel: the loss doesn't depend on the parameters; compute it without detach and no_grad"
                )
            gradients = torch.autograd.grad(loss, list(arrays.trained.values()), allow_unused=True)
            self._write(arrays.gradients(grads), gradients)
            if is_first:
                arrays.check_in_place()
                self._first.after(arrays.module, params)
            if batch.statistics:
                batch.statistics[EXAMPLES][...] = len(batch)
                for key, buffer in arrays.running.items():
                    batch.statistics[key][...] = buffer.numpy()
            found_loss = float(loss.detach())
        if batch.training and not self._first.evaluated:
            self._evaluate_first(params, batch)
        return found_loss, len(batch)

    def _evaluate_first(self, params: Views, batch: Batch) -> None:
        """Computes outputs of the first microbatch, for an error of theirs comes before the first epoch, not after."""
        batch = replace(batch, training=False, statistics={})
        with self._prepared(params, batch) as arrays, torch.no_grad():
            inputs, targets, _ = self._tensors(arrays, batch)
            found = self._evaluated(arrays, inputs)
            if self.outputs is not None:
                check_outputs(self.outputs(found), len(batch))
            self._losses.check(found, targets, lambda part: self._evaluated(arrays, self._inputs(arrays, batch, part)))
        self._first.evaluated = True

    @staticmethod
    def _write(views: list[Any], found: Sequence[Any]) -> None:
        """Gradients into their views; zeros for parameters that the loss doesn't depend on."""
        if any(one is None or one.layout is not torch.strided for one in found):
            dense = [
                torch.zeros_like(view) if one is None else one.to_dense()
                for view, one in zip(views, found, strict=True)
            ]
            torch._foreach_copy_(views, dense)
        else:
            torch._foreach_copy_(views, list(found))

    def score(self, params: Views, scratch: Views, batch: Batch) -> tuple[float, int, Array | None]:
        loss_sum, outputs = 0.0, []
        with self._prepared(params, batch) as arrays, torch.no_grad():
            for part in self._parts(batch):
                inputs, targets, weights = self._tensors(arrays, batch, part)
                found = self._evaluated(arrays, inputs)
                loss_sum += float(self._losses.total(found, targets, weights, len(targets)))
                outputs.append(found if self.outputs is None else self.outputs(found))
            measured = all(isinstance(one, torch.Tensor) and one.ndim for one in outputs)
            return loss_sum, len(batch), self._batch_last(outputs) if measured else None

    def predict(self, params: Views, batch: Batch) -> Array:
        with self._prepared(params, batch) as arrays, torch.no_grad():
            outputs = []
            for part in self._parts(batch):
                found = self._evaluated(arrays, self._inputs(arrays, batch, part))
                outputs.append(self._losses.predictions(found) if self.outputs is None else self.outputs(found))
            return self._batch_last(outputs)

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        self._is_running = True
        torch.set_num_threads(1)
        try:
            with torch.inference_mode(False), _generators_kept(), _modes_kept(self.module):
                self.module.eval()  # all parts: the first step then sets the mode of each
                yield
        finally:
            self._is_running = False
            self._arrays.release()
            torch.set_num_threads(threads)

    def take_best(self, params: Views, state: Views) -> None:
        self._arrays.take(params, state)

    def state_dict(self, params: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, Any]:
        """What `module.load_state_dict` takes, of a result's arrays.

        Parameters
        ----------
        params, state : mapping of str to array
            `result.params` and `result.state`.

        Returns
        -------
        dict
            Tensors by name, tied ones under all of their names.
        """
        own = self.module.state_dict(keep_vars=True)
        names = {id(one): key for key, one in (*self._arrays.trained.items(), *self._arrays.constant.items())}
        names |= {id(one): key for key, one in self._arrays.running.items()}
        given = {**state, **params}
        found = {}
        for key, one in own.items():
            tensor = torch.empty_like(one, requires_grad=False)
            if (name := names.get(id(one))) is not None:
                tensor.copy_(torch.from_numpy(np.array(given[name])))
            found[key] = tensor
        return found

    @contextmanager
    def _prepared(self, params: Views, batch: Batch) -> Iterator[ModuleArrays]:
        """The module with these parameters, this state and this microbatch's random numbers, in one thread."""
        check_caller()
        arrays = self._arrays_for(next(iter(params.values())).dtype)
        generator, threads = torch.default_generator, torch.get_num_threads()
        if threads != 1:
            torch.set_num_threads(1)
        before = generator.get_state()
        try:
            if self._is_running and arrays is self._arrays:
                written = self._enter(arrays, params, batch)
                yield arrays
                arrays.check_unchanged(written)
            else:
                with torch.inference_mode(False), _generators_kept(), arrays.kept(), _modes_kept(arrays.module):
                    arrays.module.train(batch.training)  # also where a part is in another mode than the whole
                    written = self._enter(arrays, params, batch)
                    yield arrays
                    arrays.check_unchanged(written)
        finally:
            generator.set_state(before)
            if threads != 1:
                torch.set_num_threads(threads)

    @staticmethod
    def _enter(arrays: ModuleArrays, params: Views, batch: Batch) -> list[int]:
        """The versions of what the module then doesn't write to."""
        arrays.bind(params)
        arrays.load(batch.state)
        if arrays.module.training is not batch.training:
            arrays.module.train(batch.training)
        purpose = "PyTorch" if batch.training else "PyTorch in evaluation"
        word = int(batch.random_words(1, purpose)[0]) >> 1
        torch.default_generator.manual_seed(word)
        random.seed(word)
        np.random.seed(word & 0xFFFFFFFF)
        return arrays.versions()

    def _arrays_for(self, dtype: np.dtype) -> ModuleArrays:
        if dtype == self._arrays.dtype:
            return self._arrays
        if dtype != np.float64:
            raise ConfigurationError(
                f"TorchModel: the parameters are {self._arrays.dtype}, got {dtype} to compute with"
            )
        if self._wide is None:
            self._wide = self._arrays.wide()
        return self._wide

    def _tensors(self, arrays: ModuleArrays, batch: Batch, part: slice = slice(None)) -> tuple[Any, Any, Any]:
        dtype = next(iter(arrays.trained.values())).dtype
        targets = batch_first(batch.y[..., part], dtype)
        if not targets.is_floating_point() and targets.dtype is not torch.bool:
            targets = targets.long()
        weights = None if batch.weights is None else batch_first(batch.weights[part], dtype)
        return self._inputs(arrays, batch, part), targets, weights

    def _inputs(self, arrays: ModuleArrays, batch: Batch, part: slice) -> Any:
        """A tensor, or tensors by name."""
        x, dtype = batch.x[..., part], next(iter(arrays.trained.values())).dtype
        if x.dtype.names is None:
            return batch_first(x, dtype, arrays.formats)
        return {name: batch_first(np.moveaxis(x[name], 0, -1), dtype, arrays.formats) for name in x.dtype.names}

    @staticmethod
    def _call(arrays: ModuleArrays, inputs: Any) -> Any:
        try:
            return arrays.module(**inputs) if isinstance(inputs, dict) else arrays.module(inputs)
        except TypeError:
            check_inputs(arrays.module, inputs)
            raise

    @classmethod
    def _evaluated(cls, arrays: ModuleArrays, inputs: Any) -> Any:
        try:
            return cls._call(arrays, inputs)
        except RuntimeError as error:
            raise takes_gradients_itself(error) from error

    @staticmethod
    def _parts(batch: Batch) -> Iterator[slice]:
        """Few enough examples at a time for the cache and for memory: a function of their shape alone."""
        x, count = batch.x, len(batch)
        size = x.dtype.itemsize // 4 if x.dtype.names else prod(x.shape[:-1])
        together = max(_EVALUATED_TOGETHER // max(size, 1), _LEAST_TOGETHER)
        yield from (slice(start, min(start + together, count)) for start in range(0, max(count, 1), together))

    @staticmethod
    def _batch_last(outputs: list[Any]) -> Array:
        if not all(isinstance(one, torch.Tensor) and one.ndim for one in outputs):
            kind = "single number" if isinstance(outputs[0], torch.Tensor) else type(outputs[0]).__name__
            raise ConfigurationError(
                f"TorchModel: the module returns a {kind}; say with outputs= which tensor of it are the predictions, "
                "such as outputs=lambda returned: returned[0]"
            )
        whole = torch.cat([one[:, None] if one.ndim == 1 else one for one in outputs])
        return np.moveaxis(whole.detach().numpy(), 0, -1)


# What ranks, and a run and what continues it, compare of a module: fields, so that they are found, which are looked up.
TorchModel.structure = property(lambda self: self._arrays.structure())
TorchModel.initial_values = property(lambda self: self._arrays.digest())


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Gives Python's and NumPy's global generators back as they are."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def _modes_kept(module: Any) -> Iterator[None]:
    """Gives all parts of a module the modes back that they have."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
