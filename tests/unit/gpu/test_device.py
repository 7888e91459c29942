"""Which device a name means, on hosts with and without GPUs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distsgd.core.device import CPU
from distsgd.core.errors import ConfigurationError
from distsgd.gpu import devices as choice
from distsgd.gpu.device import GPU
from distsgd.gpu.devices import choose_device, device_of_rank
from distsgd.parallel import Communicator
from tests.strict_device import StrictModule, strict_device
from tests.threads import run_on_threads


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu") == (CPU, None)
    assert str(CPU) == "cpu"
    assert CPU.free_bytes() is None


@pytest.mark.parametrize("name", ["", "cuda", "gpu:", "gpu:x", "gpu1", "GPU", "gpu:-1", "cpu:0"])
def test_other_names(name: str) -> None:
    with pytest.raises(ConfigurationError, match="expected auto, cpu, gpu or gpu:N such as gpu:1, got"):
        choose_device(name)


@pytest.fixture
def _without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "has_cupy", lambda: False)


@pytest.mark.usefixtures("_without_cupy")
def test_without_cupy() -> None:
    assert choose_device("auto") == (CPU, None)
    with pytest.raises(ConfigurationError, match=r"device gpu: CuPy isn't installed \(pip install .*--device cpu"):
        choose_device("gpu")


def test_cupy_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "has_cupy", lambda: True)
    monkeypatch.setattr(choice, "DRIVER_FILES", ())
    monkeypatch.setattr(sys, "platform", "linux")
    assert choose_device("auto") == (CPU, "CuPy is installed, but this host has no NVIDIA driver")
    with pytest.raises(ConfigurationError, match="device gpu:1: CuPy is installed, but this host has no NVIDIA driver"):
        choose_device("gpu:1")


class BrokenRuntime:
    """What CuPy is like where the driver is too old."""

    @staticmethod
    def getDeviceCount() -> int:  # noqa: N802
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient\nfor the runtime")


@pytest.mark.parametrize(("count", "reason"), [(None, "cudaErrorInsufficientDriver"), (0, "shows no GPU")])
def test_cupy_that_cannot_use_cuda(count: int | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = StrictModule(gpus=0)
    if count is None:
        module.cuda.runtime = BrokenRuntime
    monkeypatch.setattr(choice, "has_cupy", lambda: True)
    monkeypatch.setattr(sys, "platform", "elsewhere")
    monkeypatch.setitem(sys.modules, "cupy", module)
    found, why = choose_device("auto")
    assert found is CPU
    assert why is not None
    assert reason in why
    assert "\n" not in why
    with pytest.raises(ConfigurationError, match=reason):
        choose_device("gpu")


def test_a_gpu_that_refuses_all() -> None:
    """As one that another process has to itself: known as CUDA makes what this process needs there."""

    def busy(non_blocking: bool) -> None:
        raise RuntimeError("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable\nmore")

    module = StrictModule()
    module.cuda.Stream = busy
    with strict_device(module):
        problem = "gpu:0 can't be used (cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable)"
        assert choose_device("auto") == (CPU, problem)
        with pytest.raises(ConfigurationError, match=r"device gpu: gpu:0 can't be used .*; use --device cpu"):
            choose_device("gpu")


def test_auto_does_not_load_cupy_where_there_is_none_or_no_gpu() -> None:
    code = (
        "import sys; from distsgd.gpu.devices import choose_device; choose_device('auto'); print('cupy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    has_driver = any(Path(name).exists() for name in choice.DRIVER_FILES)
    assert done.stdout.strip() == str(has_driver and importlib.util.find_spec("cupy") is not None)


@pytest.mark.parametrize(("name", "index"), [("gpu", 1), ("auto", 1), ("gpu:2", 2), ("gpu:0", 0)])
def test_gpus(name: str, index: int) -> None:
    with strict_device(StrictModule(gpus=3)):
        found, why = choose_device(name, local_rank=4)
    assert (found.name, found.index, found.description, why) == (f"gpu:{index}", index, "Strict", None)


@pytest.mark.parametrize(("gpus", "there"), [(1, "gpu:0 alone"), (2, "gpu:0 to gpu:1")])
def test_a_gpu_that_is_not_there(gpus: int, there: str) -> None:
    with strict_device(StrictModule(gpus)), pytest.raises(ConfigurationError, match=f"gpu:2: this host has {there}"):
        choose_device("gpu:2")


def devices(name: str, hosts: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    def rank(communicator: Communicator) -> tuple[str, list[str]]:
        found, notes = device_of_rank(communicator, name)
        return found.name, notes

    return run_on_threads(len(hosts), rank, hosts)


def test_one_gpu_a_rank_of_a_host() -> None:
    with strict_device(StrictModule(gpus=2)):
        found = devices("gpu", ("a", "a", "b", "b"))
    assert found == [("gpu:0", []), ("gpu:1", []), ("gpu:0", []), ("gpu:1", [])]


@pytest.mark.parametrize(("name", "used"), [("gpu", 2), ("gpu:1", 1)])
def test_ranks_that_share_gpus_are_reported(name: str, used: int) -> None:
    with strict_device(StrictModule(gpus=2)):
        found = devices(name, ("a", "a", "a", "b"))
    warning = f"warning: a: 3 ranks share {used} GPU(s); one rank a GPU is faster"
    assert [notes for _, notes in found] == [[warning]] * 4


def test_gpus_that_differ_are_named() -> None:
    with strict_device(StrictModule(gpus=2, names=("Small", "Large"))):
        found = devices("gpu", ("a", "a"))
    assert all("the GPUs differ (Small, Large)" in notes[0] for _, notes in found)


@pytest.mark.usefixtures("_without_cupy")
def test_an_error_on_all_ranks() -> None:
    with pytest.raises(ConfigurationError, match="CuPy isn't installed"):
        devices("gpu", ("a", "a"))


def test_auto_takes_the_cpu_where_one_host_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(name: str, local_rank: int) -> Any:
        return (GPU("gpu:0", StrictModule), None) if local_rank == 0 else (CPU, None)

    monkeypatch.setattr("distsgd.gpu.devices.choose_device", choose)
    monkeypatch.setattr("distsgd.gpu.devices.problem_of", lambda device: None)
    found = devices("auto", ("a", "a"))
    assert found == [("cpu", ["device auto computes on the CPU: a has no CuPy, other hosts have"])] * 2
