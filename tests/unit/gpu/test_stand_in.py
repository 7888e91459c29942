"""The stand-in for CuPy that the tests of GPUs rest on: what it refuses, and what it sees."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from distsgd.core.device import CPU, array_module, host_copy, in_host_memory, to_host
from distsgd.gpu.devices import choose_device
from tests.strict_arrays import StrictArray
from tests.strict_device import StrictModule, strict_device

pytestmark = pytest.mark.stand_in


def test_arrays_of_a_device_are_distinguished_from_numpys() -> None:
    array = np.arange(6.0)
    assert in_host_memory(array)
    assert to_host(array) is array
    assert host_copy(array) is not array
    with strict_device(StrictModule()) as recorder:
        gpu, _ = choose_device("gpu")
        there = gpu.put(array)
        assert not in_host_memory(there)
        assert array_module(there) is gpu.xp
        np.testing.assert_array_equal(to_host(there), array)
        assert [event.kind for event in recorder.events] == ["to device", "to host"]


def test_what_the_stand_in_refuses() -> None:
    with strict_device(StrictModule(gpus=2)):
        gpu, _ = choose_device("gpu")
        there, here = gpu.put(np.arange(6.0)), np.arange(6.0)
        with pytest.raises(TypeError, match="Implicit conversion"):
            np.asarray(there)
        for mixed in (lambda: there + here, lambda: np.add(here, there), lambda: there[np.array([1])]):
            with pytest.raises(TypeError, match="Unsupported type"):
                mixed()
        with pytest.raises(TypeError, match="Unsupported type"):
            there[:] = here
        with pytest.raises(NotImplementedError, match="reduce"):
            np.maximum.reduce(there)
        with pytest.raises(TypeError, match="vecdot"):
            np.vecdot(there, there)
        with pytest.raises(TypeError, match="no implementation found"):
            np.median(there)
        gpu.xp.cuda.Device(1).use()
        with pytest.raises(AssertionError, match="met GPU 1"):
            np.add(there, 1.0)


def test_what_begins_inside_of_other_memory_is_copied() -> None:
    with strict_device(StrictModule()):
        gpu, _ = choose_device("gpu")
        whole = gpu.put(np.arange(256.0))
        parts = [whole[start:] for start in range(64)]
        addresses = [part.data.ptr % 256 for part in parts]  # type: ignore[attr-defined]
        assert addresses.count(0) == 2  # every 32 numbers
        for part, address in zip(parts, addresses, strict=True):
            assert (gpu.aligned(part) is part) == (address == 0)
            np.testing.assert_array_equal(to_host(gpu.aligned(part)), to_host(part))
    host = np.arange(9.0)[1:]
    assert CPU.aligned(host) is host


def test_the_stand_in_sees_memory_that_is_used_too_early() -> None:
    with strict_device(StrictModule()):
        gpu, _ = choose_device("gpu")
        buffer = gpu.host_buffer((4,), np.dtype(np.float32))
        buffer[:] = 1.0
        there = gpu.put(buffer)
        to_host(there)
        buffer[:] = 2.0  # the host has waited
        there.set(buffer)  # type: ignore[attr-defined]
        buffer[:] = 3.0
        with pytest.raises(AssertionError, match="was being copied"):
            to_host(there)


def test_the_stand_in_has_no_name_that_cupy_has_not() -> None:
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy isn't installed")
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    names = [name for name in vars(StrictModule) if not name.startswith("_")]
    assert [name for name in names if not hasattr(cupy, name)] == []
    methods = [name for name in vars(StrictArray) if not name.startswith("_") and name not in ("inside", "gpu")]
    assert [name for name in methods if not hasattr(cupy.ndarray, name)] == []
