"""What of a PyTorch module can't have the same bits on any number of ranks, found before it trains."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from distsgd import ConfigurationError
from distsgd.nn import Array

SINGLE = (bool, int, float, str, type(None))
"""The kinds of an attribute that is one value."""
_TAKEN = (torch.float32, torch.float64)


def check_module(module: Any) -> None:
    """Raises ConfigurationError for what can't be trained as it is."""
    if not isinstance(module, torch.nn.Module):
        raise ConfigurationError(f"TorchModel: expected a torch.nn.Module, got {type(module).__name__}")
    name = type(module).__name__
    if isinstance(module, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
        raise ConfigurationError(f"TorchModel: {name} shares the work itself; give the module inside, wrapper.module")
    for key, part in module.named_modules():
        _check_part(f"its part {key}" if key else "this module", part)
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        _check_tensor(key, tensor)
    _check_dtypes({key: one for key, one in module.named_parameters() if one.requires_grad})


def _check_part(name: str, part: Any) -> None:
    is_compiled = hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
    if is_compiled or hasattr(part.forward, "_torchdynamo_orig_callable"):
        raise ConfigurationError(
            f"TorchModel: {name} is compiled, and what a compiler makes of it may differ between ranks and starts; "
            "give the module as it was before torch.compile"
        )
    if isinstance(part, torch.jit.ScriptModule):
        raise ConfigurationError(
            f"TorchModel: {name} is a script module, which may be computed otherwise after its first calls; give the "
            "module that it was made from"
        )
    if isinstance(part, torch.nn.SyncBatchNorm):
        raise ConfigurationError(
            "TorchModel: SyncBatchNorm sends messages to other processes; give BatchNorm, whose statistics are of "
            "each microbatch, the same on any number of ranks"
        )
    if isinstance(part, torch.nn.Embedding | torch.nn.EmbeddingBag) and part.max_norm is not None:
        raise ConfigurationError(
            f"TorchModel: {name} has max_norm, by which forward writes to the weights, on each rank to others; leave "
            "max_norm out, and in a forward of your own read F.embedding(ids, weight.renorm(2, 0, max_norm))"
        )
    for hook in part._forward_pre_hooks.values():
        old = type(hook).__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")
        if old:
            function = type(hook).__module__.rpartition(".")[2]
            raise ConfigurationError(
                f"TorchModel: {name} has the old torch.nn.utils.{function}, whose weight is no parameter; give "
                f"torch.nn.utils.parametrizations.{function}"
            )


def _check_tensor(key: str, tensor: Any) -> None:
    if torch.nn.parameter.is_lazy(tensor):
        raise ConfigurationError(f"TorchModel: {key} has no shape yet; call the module once, on one example")
    if tensor.device.type != "cpu":
        raise ConfigurationError(
            f"TorchModel: {key} is on {tensor.device}, and distsgd computes it on the CPU; give .cpu()"
        )
    if tensor.layout is not torch.strided:
        raise ConfigurationError(f"TorchModel: {key} is sparse; give it dense (.to_dense())")
    if tensor.is_inference():
        raise ConfigurationError(
            f"TorchModel: {key} was made under torch.inference_mode(), and can't be trained; make the module outside"
        )
    if getattr(tensor, "_post_accumulate_grad_hooks", None):
        raise ConfigurationError(
            f"TorchModel: {key} has a hook of register_post_accumulate_grad_hook, which would not be called, for "
            "gradients are added up over microbatches in distsgd's memory; take it away, or give register_hook"
        )


def _check_dtypes(trained: Mapping[str, Any]) -> None:
    if not trained:
        raise ConfigurationError("TorchModel: no parameter has requires_grad=True, there is nothing to train")
    first, dtype = next((key, one.dtype) for key, one in trained.items())
    for key, one in trained.items():
        if one.dtype not in _TAKEN:
            raise ConfigurationError(
                f"TorchModel: {key} is {dtype_name(one.dtype)}; give parameters of float32 (module.float()) or float64"
            )
        if one.dtype != dtype:
            raise ConfigurationError(
                f"TorchModel: {first} is {dtype_name(dtype)} and {key} {dtype_name(one.dtype)}; give all parameters "
                "one dtype"
            )


def dtype_name(dtype: Any) -> str:
    """`float32` of torch.float32."""
    return str(dtype).removeprefix("torch.")


def is_torchs(part: Any) -> bool:
    """Whether a module's class is PyTorch's own."""
    return type(part).__module__.startswith("torch.")


def check_caller() -> None:
    """Raises ConfigurationError where the caller's modes would change what is computed."""
    if torch.is_autocast_enabled("cpu"):
        raise ConfigurationError(
            "TorchModel: called under torch.autocast, whose outputs have another dtype; put autocast into the module's "
            "forward, and return float32"
        )


def check_inputs(module: Any, inputs: Any) -> None:
    """Raises ConfigurationError where forward has other arguments than the inputs."""
    signature = inspect.signature(module.forward)
    try:
        if isinstance(inputs, dict):
            signature.bind(**inputs)
        else:
            signature.bind(inputs)
    except TypeError as error:
        given = ", ".join(inputs) if isinstance(inputs, dict) else "one array"
        raise ConfigurationError(
            f"TorchModel: the module's forward is {signature}, and the data has {given}: {error}; give one array, or "
            "a dictionary of arrays by the names of forward's arguments"
        ) from error


def check_outputs(found: Any, count: int) -> None:
    """Raises ConfigurationError where what `outputs` returns isn't a tensor, examples first."""
    if not isinstance(found, torch.Tensor) or not found.ndim or len(found) != count:
        shape = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise ConfigurationError(
            f"TorchModel: outputs= must return a tensor, an output for each of {count} examples, got {shape}"
        )


def changes_parameter(key: str) -> ConfigurationError:
    return ConfigurationError(
        f"TorchModel: the module's forward writes to its parameter {key}, on each rank for other examples; compute "
        "with a changed copy of it, such as weight.clamp(-1, 1), or change it in a callback"
    )


def of_single_example(error: ValueError, count: int) -> Exception:
    """A normalization's own error, in a sentence where a microbatch of one example has caused it."""
    if count != 1 or "more than 1 value per channel" not in str(error):
        return error
    return ConfigurationError(
        "TorchModel: a minibatch has a single example, whose values can't be normalized: an epoch's last one has what "
        "is left over of the examples; give drop_last=True, or another batch_size"
    )


def takes_gradients_itself(error: RuntimeError) -> Exception:
    """The error of a gradient inside of forward, in a sentence where predictions are computed without gradients."""
    if "does not require grad" not in str(error):
        return error
    return ConfigurationError(
        "TorchModel: the module's forward takes gradients itself, and outputs are computed under torch.no_grad(); put "
        "`with torch.enable_grad():` around that part of forward"
    )


class FirstForwards:
    """What the first forwards in training change besides buffers that are known to move.

    The first one may fill caches. The second one is of the same examples, and changes nothing in a module whose bits
    are a function of its parameters and the batch.
    """

    def __init__(self) -> None:
        self.calls, self.evaluated = 0, False
        self.doubt: str | None = None
        self._digest = 0
        self._held: dict[str, Any] = {}

    def before(self, module: Any, params: Mapping[str, Array]) -> None:
        self._digest, self._held = _digest(params), _held(module)

    def after(self, module: Any, params: Mapping[str, Array]) -> None:
        """Raises ConfigurationError where a parameter has changed, also where PyTorch doesn't count it."""
        if _digest(params) != self._digest:
            raise changes_parameter("(written to as .data)")
        held, self.calls = _held(module), self.calls + 1
        changed = [key for key, one in held.items() if key in self._held and not _equal(self._held[key], one)]
        if changed and self.calls > 1:
            self.doubt = (
                f"the module's forward changes its {', '.join(changed[:3])}, which counts the microbatches of one "
                "rank alone; leave it out, or make it a buffer that running_buffers names"
            )


def _digest(params: Mapping[str, Array]) -> int:
    found = 0
    for array in params.values():
        found = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, found)
    return found


def _held(module: Any) -> dict[str, Any]:
    """What the user's modules hold as single values, and the versions of buffers that aren't saved."""
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        place = f"{name}." if name else ""
        if not is_torchs(part):
            found |= {f"attribute {place}{key}": one for key, one in vars(part).items() if isinstance(one, SINGLE)}
        for key in part._non_persistent_buffers_set:
            buffer = part._buffers.get(key)
            found[f"buffer {place}{key}"] = None if buffer is None else (id(buffer), buffer._version)
    return found


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other) or (one != one and other != other)
