"""Ranks on GPUs: by which way they send, that nothing changes but the way, and what happens where one can't be used."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distsgd import Layer
from distsgd.cli import train as command
from distsgd.core.device import Array, Shape, to_host
from distsgd.core.errors import ConfigurationError, DistsgdError
from distsgd.core.layout import Views
from distsgd.gpu.choose_transport import between_gpus
from distsgd.gpu.devices import choose_device
from distsgd.gpu.nccl import open_nccl, version_words
from distsgd.gpu.report import describe_device
from distsgd.nn.batch import Batch
from distsgd.nn.layers import Dense, Sequential
from distsgd.nn.layers.base import Backward
from distsgd.parallel import Communicator
from distsgd.parallel.serial import SerialCommunicator
from distsgd.parallel.transport import Parts, Transport
from tests.strict_arrays import MPI, NCCL, RECORDER, TO_DEVICE, TO_HOST, StrictArray
from tests.strict_device import StrictModule, strict_device
from tests.strict_nccl import NcclError, StrictNccl
from tests.threads import run_on_threads
from tests.unit.counting import Counting
from tests.unit.gpu.test_training import SETTINGS, on_ranks, same, train

pytestmark = pytest.mark.stand_in


def gpus(count: int, **options: Any) -> StrictModule:
    return StrictModule(gpus=count, nccl=StrictNccl(**options))


# The same bits by NCCL


@pytest.mark.parametrize("setting", ["adam, clipped", "batch norm, dropout", "images", "short batches"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_same_bits_by_nccl(size: int, setting: str) -> None:
    options = {**SETTINGS[setting], "microbatches": 4}
    module = gpus(size)
    with strict_device(module):
        results = on_ranks(size, size, communication="nccl", **options)
    alone = train("cpu", **{key: value for key, value in options.items() if key != "communication"})
    for result in results:
        same(result, alone)
    assert module.nccl.calls["send"] == module.nccl.calls["recv"] > 0


def test_large_models_are_cut_over_ranks() -> None:
    """More than one block of elements: all ranks own some, unequally many."""
    options: dict[str, Any] = {"hidden": (300, 60), "max_steps": 3}
    module = gpus(3)
    with strict_device(module):
        results = on_ranks(3, 3, **options)
    assert module.nccl.calls["broadcast"] > 0
    same(results[0], train("cpu", **options))


def test_a_step_by_nccl() -> None:
    """Gradients and parameters never come to the host; what the host reads are the records, and whether all is
    finite."""
    with strict_device(gpus(2)) as recorder:
        on_ranks(2, cuda_graphs=False)
    for gpu, (examples, microbatches) in enumerate([(13, 1), (27, 2)]):
        owns = gpu == 1  # there is one block, and rank 1 owns it
        assert recorder.of_step(1, gpu) == [
            (TO_DEVICE, examples * 4),
            (TO_HOST, microbatches * 2 * 8),
            (MPI, "allgather_slices"),  # flags and records
            (NCCL, "recv" if owns else "send"),
            *[(TO_HOST, 4)] * owns,
            (NCCL, "broadcast"),
        ]


# Which way, and why


def way(size: int, communication: str = "auto", hosts: Any = None, wrap: Any = None, **more: Any) -> list[Any]:
    def choose(communicator: Communicator) -> Any:
        device, _ = choose_device("gpu", communicator.node().rank)
        found, why = between_gpus(wrap(communicator) if wrap else communicator, device, communication, **more)
        return type(found).__name__, found.description, why

    return run_on_threads(size, choose, hosts)


HOST = "through memory of the host"
STAGED = "StagedTransport"


def test_nccl_where_it_is_there() -> None:
    with strict_device(gpus(3)):
        assert way(3) == [("NcclTransport", "by NCCL 2.23.4", None)] * 3
    with strict_device(gpus(1, hosts="ab")):
        assert way(2, hosts=("a", "b")) == [("NcclTransport", "by NCCL 2.23.4", None)] * 2


def on_rank_1(name: str) -> Callable[[str, int], None]:
    def fail(called: str, rank: int) -> None:
        if (called, rank) == (name, 1):
            raise NcclError("NCCL_ERROR_SYSTEM_ERROR: unhandled system error\nmore")

    return fail


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (StrictModule(gpus=2), r"NCCL isn't installed \(rank 0 on a\)"),
        (gpus(1), "ranks 0 and 1 share a GPU of a, and NCCL takes one rank a GPU"),
        (gpus(2, version=2604), r"NCCL 2.6.4 is older than 2.9.6 \(rank 0 on a\)"),
        (gpus(2, wrong=True), r"NCCL did not pass a trial \(rank 0: it delivered other numbers than were sent\)"),
    ],
)
def test_another_way_where_nccl_cannot_be_used(module: StrictModule, why: str) -> None:
    with strict_device(module):
        found = way(2, hosts=("a", "a"))
        assert [(kind, by) for kind, by, _ in found] == [(STAGED, HOST)] * 2
        assert found[0][2] == found[1][2]
        with pytest.raises(AssertionError, match=f"^gradients travel {HOST}: {why}$"):
            raise AssertionError(found[0][2])
        with pytest.raises(ConfigurationError, match=f"communication nccl: {why}; use auto or mpi"):
            way(2, "nccl", hosts=("a", "a"))


@pytest.mark.parametrize("name", ["NcclCommunicator", "groupEnd"])
def test_one_rank_where_nccl_fails_takes_all_along(name: str) -> None:
    """What fails on one rank leaves the others waiting in NCCL, where a real one gives up, as the stand-in does."""

    def all_ranks(called: str, rank: int) -> None:
        if called == name:
            raise NcclError("NCCL_ERROR_SYSTEM_ERROR: unhandled system error\nmore")

    with strict_device(gpus(2, fails=all_ranks)):
        (kind, _, why), other = way(2)
    assert (kind, other[2]) == (STAGED, why)
    assert "NCCL_ERROR_SYSTEM_ERROR: unhandled system error" in why
    assert "\n" not in why


def test_no_unique_id() -> None:
    def fail(called: str, rank: int) -> None:
        if called == "get_unique_id":
            raise NcclError("NCCL_ERROR_SYSTEM_ERROR: unhandled system error (no network)")

    with strict_device(gpus(2, fails=fail)):
        found = way(2)
    assert [one[0] for one in found] == [STAGED] * 2
    assert "NCCL did not start (NCCL_ERROR_SYSTEM_ERROR: unhandled system error (no network))" in found[1][2]


def test_other_ways_than_nccl_are_refused_by_name() -> None:
    with strict_device(gpus(2)):
        assert way(2, "mpi") == [(STAGED, HOST, None)] * 2
        with pytest.raises(ConfigurationError, match="have a replica each"):
            way(2, "shared")


@pytest.mark.parametrize("size", [1, 2])
def test_on_the_cpu(size: int) -> None:
    with pytest.raises(
        ConfigurationError, match="communication nccl: NCCL joins GPUs, and this run computes on the CPU"
    ):
        run_on_threads(size, lambda c: train("cpu", communicator=c, communication="nccl"))


def test_a_failure_in_the_middle_is_reported() -> None:
    calls: list[int] = []

    def fail(called: str, rank: int) -> None:
        calls.extend([rank] * (called == "check_async_error"))
        if called == "check_async_error" and calls.count(rank) == 3:
            raise NcclError("NCCL_ERROR_REMOTE_ERROR: remote process exited or there was a network error")

    with strict_device(gpus(2, fails=fail)), pytest.raises(Exception, match="NCCL failed between steps: NCCL_ERROR_RE"):
        on_ranks(2)


def test_nothing_is_sent_after_an_error() -> None:
    """Whether a part of the group was isn't known."""
    fails = [True]

    def fail(called: str, rank: int) -> None:
        if called == "groupEnd" and fails.pop():
            raise NcclError("NCCL_ERROR_SYSTEM_ERROR: unhandled system error")

    module = gpus(1, fails=fail)
    with strict_device(module):
        device, _ = choose_device("gpu:0")
        device.use()
        nccl, _ = open_nccl(SerialCommunicator(), device)
        assert nccl is not None
        for _ in range(2):
            with pytest.raises(DistsgdError, match="NCCL failed: NCCL_ERROR_SYSTEM_ERROR"):
                nccl.broadcast(device.put(np.ones(4)))
    assert not module.nccl.calls


@dataclass(frozen=True)
class Failing(Layer):
    """Passes all on, and fails in backward of the second step's microbatch 1."""

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        def backward(dy: Array, grads: Views) -> Array:
            if (batch.step, batch.microbatch) == (1, 1):
                raise KeyError("in the middle of backward")
            return dy

        return x, backward


def test_a_rank_that_fails_in_backward_leaves_no_rank_waiting() -> None:
    model = Sequential([Dense(12, 200), Failing(), Dense(200, 4)])
    with strict_device(gpus(3)), pytest.raises(KeyError, match=r"failed on rank 1 .*step 2, microbatch 1"):
        on_ranks(3, 3, model=model, learning_rate=0.01)


@pytest.mark.parametrize(("number", "words"), [(2708, "2.7.8"), (21003, "2.10.3"), (22304, "2.23.4")])
def test_versions(number: int, words: str) -> None:
    assert version_words(number) == words


def test_header_and_doctor_say_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signals: Any = SimpleNamespace(watch=lambda trainer: None)
    options = ["--device", "gpu", "--max-steps", "2", "--dry-run", "--out", str(tmp_path / "run")]

    def start(*more: str) -> str:
        run_on_threads(2, lambda c: command.train(c, [*options, *more], signals))
        return capsys.readouterr().out

    with strict_device(gpus(2)):
        assert "compute    Strict (gpu:0), float32; gradients travel by NCCL 2.23.4\n" in start()
        assert f"; gradients travel {HOST}\n" in start("--communication", "mpi")
        assert set(run_on_threads(2, describe_device)) == {
            "auto is Strict (gpu:0), Strict (gpu:1); gradients travel by NCCL 2.23.4"
        }
    with strict_device(gpus(1)):
        assert run_on_threads(2, describe_device, ("a", "a"))[0] == (
            "auto is Strict (gpu:0); warning: a: 2 ranks share 1 GPU(s); one rank a GPU is faster; "
            f"gradients travel {HOST}: ranks 0 and 1 share a GPU of a, and NCCL takes one rank a GPU"
        )


# MPI that takes GPU memory


class Aware(Counting):
    """Ranks on threads whose MPI takes arrays of GPUs: only such as nothing is being done to."""

    def _pass(self, name: str, *arguments: Any) -> Any:
        on_gpu = [argument for argument in arguments if isinstance(argument, StrictArray)]
        if not name.endswith("_object"):
            RECORDER.note(MPI, f"{name} of GPUs" if on_gpu else name)
        assert not (on_gpu and RECORDER.busy), "MPI reads and writes while the GPU computes"
        opened = [argument.inside if isinstance(argument, StrictArray) else argument for argument in arguments]
        return super()._pass(name, *opened)


@pytest.fixture
def _aware(monkeypatch: pytest.MonkeyPatch) -> None:
    def takes(transport: Transport) -> bool | None:
        return True if isinstance(getattr(transport, "counting", None), Aware) else None

    monkeypatch.setattr("distsgd.gpu.choose_transport.takes_device_memory", takes)


@pytest.mark.usefixtures("_aware")
@pytest.mark.parametrize("setting", ["adam, clipped", "batch norm, dropout"])
def test_mpi_that_takes_gpu_memory(setting: str) -> None:
    options = SETTINGS[setting]
    with strict_device(StrictModule(gpus=2)) as recorder:
        results = run_on_threads(2, lambda c: train("gpu", communicator=Aware(c), **options))
    for result in results:
        same(result, train("cpu", **options))
    reported = [what for kind, what in recorder.of_step(1, 1) if kind == MPI]
    assert [what for what in reported if "GPUs" in str(what)] == ["alltoall of GPUs", "allgather_slices of GPUs"]


@pytest.mark.usefixtures("_aware")
def test_it_comes_after_nccl_and_before_the_host() -> None:
    direct = ("DirectTransport", "by MPI, which takes GPU memory")
    with strict_device(StrictModule(gpus=2)):
        found = way(2, wrap=Aware)
        assert [one[:2] for one in found] == [direct] * 2
        why = f"NCCL isn't installed (rank 0 on {platform.node()})"
        assert found[0][2] == f"gradients travel by MPI, which takes GPU memory: {why}"
    with strict_device(gpus(2)):
        assert way(2, "mpi", wrap=Aware) == [(*direct, None)] * 2
        assert way(2, "auto", wrap=Aware)[0][0] == "NcclTransport"
        one_says_no = lambda c: Aware(c) if c.rank else c  # noqa: E731
        assert way(2, "mpi", wrap=one_says_no)[0][0] == STAGED


# The stand-in


def reduction(change: Callable[[int, dict[str, Any]], None]) -> Callable[[Communicator], list[int]]:
    def run(communicator: Communicator) -> list[int]:
        device, _ = choose_device("gpu", communicator.rank)
        joined, _ = between_gpus(communicator, device, "nccl")
        send, receive = device.put(np.arange(8, dtype=np.uint8)), device.put(np.zeros(8, np.uint8))
        parts = Parts.consecutive([4, 4])
        printed: dict[str, Any] = {"send": send, "sent": parts, "receive": receive, "received": parts}
        change(communicator.rank, printed)
        joined.alltoall(**printed)
        return to_host(receive).tolist()  # type: ignore[no-any-return]

    return run


def test_the_stand_in_delivers() -> None:
    with strict_device(gpus(2)):
        found = run_on_threads(2, reduction(lambda rank, printed: None))
    assert found == [[0, 1, 2, 3, 0, 1, 2, 3], [4, 5, 6, 7, 4, 5, 6, 7]]


@pytest.mark.long
def test_what_the_strict_nccl_refuses() -> None:
    def fewer(rank: int, printed: dict[str, Any]) -> None:
        if rank:
            printed["sent"] = Parts.consecutive([3, 4])

    def too_long(rank: int, printed: dict[str, Any]) -> None:
        printed["sent"] = printed["received"] = Parts((4, 4), (0, 6 if rank == 0 else 0))

    def of_the_host(rank: int, printed: dict[str, Any]) -> None:
        printed["send"] = np.zeros(8, np.uint8)

    for change, match in (
        (fewer, "sends rank 0"),
        (too_long, "not inside an array of GPU 0"),
        (of_the_host, "'memoryview' object has no attribute 'ptr'"),
    ):
        with strict_device(gpus(2)), pytest.raises(Exception, match=match):
            run_on_threads(2, reduction(change))


def test_the_strict_nccl_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.strict_nccl.SECONDS", 0.3)

    def late(communicator: Communicator) -> None:
        device, _ = choose_device("gpu", communicator.rank)
        joined, _ = between_gpus(communicator, device, "nccl")
        whole: Array = device.put(np.zeros(4))
        if communicator.rank:
            joined.allgather_slices(whole, [2, 2])

    with strict_device(gpus(2)), pytest.raises(AssertionError, match="rank 1 is in a group that the others are not in"):
        run_on_threads(2, late)


def test_the_strict_nccl_has_no_name_that_cupys_has_not() -> None:
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy isn't installed")
    nccl = pytest.importorskip("cupy.cuda.nccl", exc_type=ImportError)
    if not nccl.available:
        pytest.skip("CuPy finds no NCCL")
    strict = StrictNccl()
    assert strict.NCCL_UINT8 == nccl.NCCL_UINT8
    for name in ("get_version", "get_unique_id", "groupStart", "groupEnd", "NcclCommunicator"):
        assert hasattr(nccl, name)
    for name in ("send", "recv", "broadcast", "allGather", "check_async_error", "abort"):
        assert hasattr(nccl.NcclCommunicator, name)
