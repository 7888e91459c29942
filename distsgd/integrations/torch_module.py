"""A PyTorch module's arrays in distsgd's terms: what is trained, what is state, and the memory that they lie in."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from distsgd import ConfigurationError
from distsgd.integrations.framework_model import EXAMPLES
from distsgd.integrations.torch_checks import SINGLE, changes_parameter, dtype_name, is_torchs
from distsgd.nn import Array, Shape, Views

_KEPT_GRADIENTS = 64


class ModuleArrays:
    """The arrays of one module, and where they lie.

    trained   the parameters with requires_grad, by name; one that is tied has its first name alone
    running   buffers that a forward in training changes: running statistics
    constant  other buffers that the module saves, and frozen parameters
    """

    def __init__(self, module: Any, running: Sequence[str]) -> None:
        self.module = module
        parameters, saved = dict(module.named_parameters()), set(module.state_dict())
        buffers = {key: one for key, one in module.named_buffers() if key in saved and one.numel()}
        unknown = [key for key in running if key not in buffers]
        if unknown:
            raise ConfigurationError(
                f"TorchModel: running_buffers names {unknown[0]!r}, and the buffers are {', '.join(buffers) or 'none'}"
            )
        moving = {*running, *_of_norms(module)}
        self.trained = {key: one for key, one in parameters.items() if one.requires_grad}
        self.running = {key: one for key, one in buffers.items() if key in moving}
        frozen = {key: one for key, one in parameters.items() if not one.requires_grad}
        self.constant = {**frozen, **{key: one for key, one in buffers.items() if key not in moving}}
        self.dtype = np.dtype(dtype_name(next(iter(self.trained.values())).dtype))
        self.normalizes = any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in module.modules())
        formats = (torch.channels_last, torch.channels_last_3d)
        self.formats = [dense for dense in formats if any(_is_in(one, dense) for one in self.trained.values())]
        self._bound: Any = None
        self._loaded: Any = None
        self._strided: list[tuple[Any, Any]] = []
        self._gradients: dict[int, tuple[Any, list[Any]]] = {}

    def structure(self) -> tuple[Any, ...]:
        """What the module is, besides the values of its tensors: its parts with their options, the classes that a user
        has written, and the single values that their objects hold."""
        kinds, values = {}, {}
        for name, part in self.module.named_modules():
            if not is_torchs(part):
                kinds[type(part).__qualname__] = type(part)
                held = {key: value for key, value in vars(part).items() if isinstance(value, SINGLE)}
                values[name] = {key: value for key, value in held.items() if _counts(key)}
        shapes = {key: tuple(one.shape) for key, one in self.module.named_parameters()}
        return repr(self.module), tuple(kinds[key] for key in sorted(kinds)), values, shapes, tuple(self.trained)

    def digest(self) -> str:
        """16 hexadecimal digits of all values that the module saves."""
        found = hashlib.sha256()
        for key, tensor in (*self.trained.items(), *self.running.items(), *self.constant.items()):
            found.update(key.encode())
            found.update(np.ascontiguousarray(tensor.detach().numpy()).tobytes())
        return found.hexdigest()[:16]

    def parameter_shapes(self) -> dict[str, Shape]:
        return {key: tuple(one.shape) for key, one in self.trained.items()}

    def state_shapes(self) -> dict[str, Shape]:
        return {key: tuple(one.shape) for key, one in (*self.running.items(), *self.constant.items())}

    def statistics_shapes(self) -> dict[str, Shape]:
        if not self.running and not self.normalizes:
            return {}
        return {EXAMPLES: (), **{key: tuple(one.shape) for key, one in self.running.items()}}

    def bind(self, params: Mapping[str, Array]) -> None:
        """Has the parameters lie in these arrays. Those that aren't C-ordered, such as weights with their channels
        last, keep their own memory and strides, and take the values over in each call."""
        if self._bound is not params:
            strided = []
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the arrays are read-only: a forward changes no parameter
                views = {key: torch.from_numpy(params[key]) for key in self.trained}
            for key, one in self.trained.items():
                if one.is_contiguous():  # where a length is 1, strides say which memory format is meant
                    one.data = views[key].as_strided(one.shape, one.stride())
                else:
                    one.data = torch.empty_like(one.data)
                    strided.append((one.data, views[key]))
            self._bound, self._strided = params, strided
        for own, view in self._strided:
            own.copy_(view)

    @torch.inference_mode(False)
    def release(self) -> None:
        """Gives the parameters memory of their own, with the values that they have."""
        if self._bound is not None:
            for one in self.trained.values():
                one.data = one.data.clone()
        self._bound, self._loaded, self._strided = None, None, []
        self._gradients.clear()

    def gradients(self, grads: Views) -> list[Any]:
        """Tensors on these views, in the order of the trained parameters."""
        found = self._gradients.get(id(grads))
        if found is None or found[0] is not grads:
            if len(self._gradients) >= _KEPT_GRADIENTS:
                self._gradients.clear()
            found = self._gradients[id(grads)] = (grads, [torch.from_numpy(grads[key]) for key in self.trained])
        return found[1]

    def load(self, state: Mapping[str, Array]) -> None:
        """Puts the state in place: running statistics in each call, for a forward changes them."""
        moving = dict(self.running)
        if self._loaded is not state:
            moving |= self.constant
            self._loaded = state
        for key, tensor in moving.items():
            if key in state:
                tensor.data.copy_(_tensor_of(state[key]))

    def versions(self) -> list[int]:
        """Numbers that change with each parameter and constant that is written to."""
        return [one._version for one in (*self.trained.values(), *self.constant.values())]

    def check_unchanged(self, before: list[int]) -> None:
        """Raises ConfigurationError where a forward has changed a parameter, or a buffer that isn't known to move."""
        after = self.versions()
        if after == before:
            return
        names = [*self.trained, *self.constant]
        changed = [key for key, old, new in zip(names, before, after, strict=True) if old != new]
        parameters = dict(self.module.named_parameters())
        for key in changed:
            if key in parameters:
                raise changes_parameter(key)
        raise ConfigurationError(
            f"TorchModel: the module's forward changes its buffer {changed[0]}; name it, "
            f"running_buffers={tuple(changed)!r}, to have the mean of what the microbatches leave as "
            "its next value"
        )

    def check_in_place(self) -> None:
        """Raises ConfigurationError where a forward has put another tensor in place of one that is trained or state."""
        now = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        for key, one in (*self.trained.items(), *self.running.items(), *self.constant.items()):
            if now.get(key) is not one:
                raise ConfigurationError(
                    f"TorchModel: the module's forward puts another tensor in place of its {key}, which is neither "
                    f"trained nor saved; write to it in place, such as self.{key}.copy_(…)"
                )

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Until the block ends, the module may be another one's arrays; then it has its own again."""
        tensors = [(one, one.data) for one in self.trained.values()]
        state = [(one, one.data.clone()) for one in (*self.running.values(), *self.constant.values())]
        try:
            yield
        finally:
            for one, data in tensors:
                one.data = data
            for one, data in state:
                one.data.copy_(data)
            self._bound, self._loaded, self._strided = None, None, []
            self._gradients.clear()

    @torch.inference_mode(False)
    def take(self, params: Mapping[str, Array], state: Mapping[str, Array]) -> None:
        """Copies values into memory of the module's own, in its strides."""
        for key, one in self.trained.items():
            own = torch.empty_like(one.data)
            own.copy_(_tensor_of(params[key]))
            one.data = own
        self._bound, self._strided, self._loaded = None, [], None
        self.load(state)

    def initialize(self, params: Views, state: Views) -> None:
        """Writes the module's values where distsgd keeps them."""
        if params.flat.dtype != self.dtype:
            raise ConfigurationError(
                f"TorchModel: the parameters are {self.dtype}, and the run computes in {params.flat.dtype}; give "
                f'dtype="{self.dtype}", or convert the module'
            )
        for key, one in self.trained.items():
            params[key][...] = one.detach().numpy()
        for key, one in (*self.running.items(), *self.constant.items()):
            value = one.detach().numpy()
            state[key][...] = value
            if not np.array_equal(state[key].astype(value.dtype), value, equal_nan=value.dtype.kind == "f"):
                raise ConfigurationError(
                    f"TorchModel: {key} holds {value.dtype} numbers that {state[key].dtype} can't hold exactly; "
                    "register it with persistent=False, or give it another dtype"
                )

    def wide(self) -> ModuleArrays:
        """A copy that computes in float64, for comparisons with differences."""
        module = copy.deepcopy(self.module).double()
        return ModuleArrays(module, tuple(self.running))


def _counts(key: str) -> bool:
    """Whether an attribute may change what a module computes: a mode, or what hash() returns, says nothing of it."""
    return key != "training" and key[0] != "_" and not key.endswith("hash")


def _is_in(tensor: Any, dense: Any) -> bool:
    """Whether a tensor is in this memory format and no other."""
    fits = tensor.ndim == (4 if dense is torch.channels_last else 5)
    return fits and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=dense)


def _of_norms(module: Any) -> Iterator[str]:
    """The names of the running statistics of normalizations."""
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.modules.batchnorm._NormBase):
            yield from (f"{name}.{key}" if name else key for key, one in part.named_buffers(recurse=False))


def _tensor_of(array: Array) -> Any:
    """A tensor of the array's values, a copy where it is read-only."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def batch_first(array: Array, dtype: Any, formats: Sequence[Any] = ()) -> Any:
    """A tensor (n, …) of a batch's array (…, n): floats in the parameters' dtype, other numbers as they are.

    Images are in the memory format that the module's weights are in.

    It begins at a multiple of 64 bytes: kernels may compute other bits elsewhere, and where a microbatch lies depends
    on the number of ranks.
    """
    found = np.moveaxis(array, -1, 0)
    if not found.dtype.isnative:
        found = found.astype(found.dtype.newbyteorder("="))
    if any(stride % found.itemsize for stride in found.strides):
        found = np.ascontiguousarray(found)
    tensor = torch.from_numpy(found)
    if tensor.is_floating_point() and tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    for dense in formats:
        if tensor.ndim == (4 if dense is torch.channels_last else 5):
            return tensor.to(memory_format=dense)
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 64 else tensor
