"""Whole training on a stand-in for a GPU: the results, what is copied when, and what MPI is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd import FunctionObjective
from distsgd.core.errors import ConfigurationError, NonFiniteError
from distsgd.core.layout import Views
from distsgd.core.random import normal, uniform
from distsgd.gpu.devices import choose_device
from distsgd.nn.batch import Batch
from distsgd.parallel import Communicator
from distsgd.parallel.reduction import Partition, Plan
from distsgd.run.build_trainer import make_reduction
from distsgd.run.fit import fit
from distsgd.run.trained.trained_model import Result
from tests import emulated_kernels
from tests.strict_arrays import KERNEL, MPI, RECORDER, TO_DEVICE, TO_HOST, StrictArray
from tests.strict_device import StrictModule, strict_device
from tests.threads import run_on_threads
from tests.unit.counting import Counting

pytestmark = pytest.mark.stand_in

EXAMPLES, CLASSES, MICROBATCHES = 90, 4, 3
X = normal((EXAMPLES, 12), 1, "x").astype(np.float32)
LABELS = np.argmax(X[:, :CLASSES], axis=1)
VALUES = (X[:, :3] * 0.5 + np.square(X[:, 3:6])).astype(np.float32)
IMAGES = (uniform((EXAMPLES, 2, 8, 8), 2, "images") * 256).astype(np.uint8)
WEIGHTS = uniform((EXAMPLES,), 3, "weights").astype(np.float32)

NET = "conv 8 3x3 same, batch-norm, relu, pool 2, conv 6 3x3, average-pool 2 stride 1, channel-dropout 0.2, dense"
SETTINGS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "adam, clipped": {"optimizer": "adam", "clip_norm": 0.5, "log_every": 1},
    "batch norm, dropout": {"batch_norm": True, "dropout": 0.3, "optimizer": "adamw", "activation": "gelu"},
    "lars": {"optimizer": "lars", "weight_decay": 0.01, "log_every": 1},
    "lamb, clipped": {"optimizer": "lamb", "weight_decay": 0.01, "clip_norm": 0.5, "freeze": ("dense2.*",)},
    "penalties": {"l1": 1e-3, "l2": 1e-3, "weight_decay": 0.01, "optimizer": "nesterov", "freeze": ("dense2.*",)},
    "rmsprop, float64": {"dtype": "float64", "optimizer": "rmsprop", "activation": "leaky-relu"},
    "smoothing": {"label_smoothing": 0.1, "class_weights": (1.0, 2.0, 0.5, 1.0), "activation": "softplus"},
    "yes or no": {"train": (X, (VALUES > 0).astype(np.float32)), "loss": "binary-cross-entropy"},
    "regression": {"train": (X, VALUES), "learning_rate": 0.001, "activation": "tanh"},
    "sample weights": {"train": (X, LABELS, WEIGHTS), "activation": "sigmoid", "optimizer": "adagrad"},
    "images": {"train": (IMAGES, LABELS), "model": NET, "top_k": 2},
    "augmented images": {"train": (IMAGES, LABELS), "model": NET, "augment": ("shift 1, flip",), "optimizer": "sgd"},
    "expanded images": {"train": (IMAGES, LABELS), "hidden": (9,), "expand": "shifts", "batch_size": 100},
    "global pool": {"train": (IMAGES, LABELS), "model": "conv 4 3x3 stride 2, relu, global-pool, dense"},
    "residual": {"train": (IMAGES, LABELS), "model": "resnet20", "max_steps": 2, "batch_size": 9},
    "looked at": {"on_non_finite": "skip", "batch_norm": True},
    "standardized": {"train": (X + 5, 9 * VALUES), "standardize": True, "standardize_targets": True},
    "short batches": {"batch_size": 2, "max_steps": 9},
}  # fmt: skip


def train(device: str, train: Any = (X, LABELS), model: Any = "mlp", **options: Any) -> Result:
    options = {
        **({"hidden": (10, 8)} if model == "mlp" else {}),
        "epochs": 2,
        "batch_size": 40,
        "validation_fraction": 0.1,
        "microbatches": MICROBATCHES,
        "threads": 1,
        **options,
    }
    return fit(model, train, device=device, **options)


def on_ranks(size: int, gpus: int = 2, hosts: Any = None, **options: Any) -> list[Result]:
    return run_on_threads(size, lambda c: train("gpu", communicator=watched(c), **options), hosts)


def watched(communicator: Communicator) -> Communicator:
    """Notes messages, and sees that nothing but arrays of the host are sent."""
    inside = Counting(communicator)
    inner_pass = inside._pass

    def look(name: str, *arguments: Any) -> Any:
        if not name.endswith("_object"):
            RECORDER.note(MPI, name)
            assert not any(isinstance(argument, StrictArray) for argument in arguments)
        return inner_pass(name, *arguments)

    inside._pass = look  # type: ignore[method-assign]
    return inside


def without_run(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "run"}


def same(result: Result, other: Result) -> None:
    """The same bits of parameters, statistics, records and summary."""
    for name in result.params:
        assert result.params[name].tobytes() == other.params[name].tobytes(), name
    for name in result.state:
        assert result.state[name].tobytes() == other.state[name].tobytes(), name
    assert without_run(result.summary) == without_run(other.summary)


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_the_bits_of_the_cpu_with_its_kernels(setting: str) -> None:
    """One model code: what runs on a device is what runs on the CPU."""
    options = SETTINGS[setting]
    with strict_device(StrictModule()):
        result = train("gpu", **options)
    assert result.summary["run"]["device"] == "Strict (gpu:0)"
    other = train("cpu", **options)
    assert other.summary["run"]["device"] == "cpu"
    same(result, other)
    assert [without_run(record) for record in result.history] == [without_run(record) for record in other.history]


@pytest.mark.parametrize("setting", ["adam, clipped", "batch norm, dropout", "penalties", "images", "short batches"])
@pytest.mark.parametrize("size", [2, 3])
def test_the_same_bits_on_any_number_of_gpus(size: int, setting: str) -> None:
    options = SETTINGS[setting]
    with strict_device(StrictModule(gpus=2)):
        results = on_ranks(size, **options)
    alone = train("cpu", **options)
    for result in results:
        same(result, alone)


@pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT)
@pytest.mark.parametrize(
    "setting", ["adam, clipped", "lars", "lamb, clipped", "batch norm, dropout", "images", "rmsprop, float64"]
)
def test_with_the_kernels_of_the_gpu(setting: str) -> None:
    """kernels.cu gives the CPU's results but for rounding, and its own bits on any number of ranks."""
    options = SETTINGS[setting]
    if options.get("optimizer") == "adamw":  # it makes full steps of a bias whose gradient is rounding alone
        options = {**options, "optimizer": "momentum"}
    with strict_device(StrictModule(gpus=3), own_kernels=True) as recorder:
        alone = train("gpu", **options)
        launched = {event.what for event in recorder.events if event.kind == KERNEL}
        for result in on_ranks(3, **options):
            same(result, alone)
    assert "softmax_cross_entropy" in launched
    on_cpu = train("cpu", **options)
    tolerance = 1e-11 if options.get("dtype") == "float64" else 2e-4
    for name, array in on_cpu.params.items():
        np.testing.assert_allclose(alone.params[name], array, rtol=tolerance, atol=tolerance, err_msg=name)


NUMBERS = (TO_DEVICE, 40 * 4)
"""The numbers of a minibatch's examples."""
RECORDS = (TO_HOST, MICROBATCHES * 2 * 8)
"""Loss sum and count of each microbatch, for which the host waits."""
FINITE = (TO_HOST, 4)
"""Whether the gradient is finite, for which it waits, too."""


def test_what_is_copied_in_a_step() -> None:
    with strict_device(StrictModule()) as recorder:
        train("gpu", dropout=0.2, optimizer="adam", cuda_graphs=False)
    assert recorder.of_step(0) == recorder.of_step(1) == [NUMBERS, RECORDS, FINITE]


def test_what_batch_normalization_copies_besides() -> None:
    with strict_device(StrictModule()) as recorder:
        train("gpu", batch_norm=True, cuda_graphs=False)
    running = (TO_DEVICE, 2 * (10 + 8) * 4)
    records = (TO_HOST, MICROBATCHES * (2 + (1 + 2 * 10) + (1 + 2 * 8)) * 8)  # count, mean and M2 of both layers
    assert recorder.of_step(1) == [running, NUMBERS, records, FINITE]


def test_what_clipping_copies_besides() -> None:
    with strict_device(StrictModule()) as recorder:
        train("gpu", clip_norm=0.1)
    assert recorder.of_step(1)[1:] == [RECORDS, FINITE, (TO_HOST, 8)]  # the squares of the one block that there is


def test_data_that_dont_fit_are_sent_a_minibatch_at_a_time() -> None:
    with strict_device(StrictModule(free_bytes=100)) as recorder:
        result = train("gpu", train=(IMAGES, LABELS), cuda_graphs=False)
    sent = [(TO_DEVICE, 40 * 128 * 4), (TO_DEVICE, 40 * 8)]
    assert recorder.of_step(1) == [*sent, RECORDS, FINITE]
    same(result, train("cpu", train=(IMAGES, LABELS)))


def test_each_array_of_a_data_set_lies_there_once() -> None:
    with strict_device(StrictModule()) as recorder:
        train("gpu", train=(IMAGES, LABELS), validation_fraction=0.3)
    large = [event for event in recorder.events if event.what == IMAGES.nbytes]
    assert [(event.kind, event.step) for event in large] == [(TO_DEVICE, None)]


def test_a_rank_copies_to_the_host_before_it_sends() -> None:
    """Sums come to the host, which waits for them; then MPI sends them, and what arrives goes to the GPU."""
    with strict_device(StrictModule(gpus=2)) as recorder:
        result = on_ranks(2)[0]
    size = sum(array.size for array in result.params.values()) * 4
    expected = [
        TO_DEVICE, TO_HOST, MPI,  # the examples' numbers; the records, which all ranks receive
        TO_HOST, MPI, TO_DEVICE,  # sums of gradients
        TO_HOST,  # whether they are finite
        TO_HOST, MPI, TO_DEVICE,  # parameters
    ]  # fmt: skip
    for gpu in range(2):
        events = recorder.of_step(1, gpu)
        owns = gpu == 1  # there is one block, and rank 1 owns it
        assert [kind for kind, _ in events] == [kind for at, kind in enumerate(expected) if owns or at != 6]
        assert [what for kind, what in events if kind == MPI] == ["allgather_slices", "alltoall", "allgather_slices"]
        assert events[-1] == (TO_DEVICE, size)


def test_ranks_take_the_gpus_of_their_host_in_turn() -> None:
    hosts = ("a", "a", "a", "b", "b")
    with strict_device(StrictModule(gpus=2)) as recorder:
        results = on_ranks(5, hosts=hosts, microbatches=5)
    assert results[0].summary["run"]["device"] == "Strict (gpu:0)"
    kernels_of = {event.gpu for event in recorder.events if event.step is not None}
    assert kernels_of == {0, 1}


@pytest.mark.parametrize("size", [1, 2])
def test_checkpoints_go_from_device_to_device(size: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_norm": True, "optimizer": "adam", "validation_fraction": 0.2, "epochs": 4}
    whole = train("cpu", **options)
    train("cpu", **{**options, "epochs": 1}, out=str(tmp_path))
    with strict_device(StrictModule()):
        on_ranks(size, **{**options, "epochs": 3}, out=str(tmp_path))
    resumed = train("cpu", **options, out=str(tmp_path))
    same(resumed, whole)


def test_a_gradient_that_is_not_finite_ends_the_run() -> None:
    with strict_device(StrictModule()), pytest.raises(NonFiniteError, match=r"not finite|is nan|is inf"):
        train("gpu", train=(X * 1e30, VALUES), learning_rate=1e30)


def linear(params: Views, grads: Views, batch: Batch) -> tuple[Any, int]:
    """Half the squared error of a linear model, in terms that both devices know."""
    error = params["w"] @ batch.x - batch.y
    grads["w"][...] = error @ batch.x.T
    return 0.5 * np.add.reduce(np.square(error).ravel()), len(batch)


def test_a_function_of_the_users() -> None:
    model = FunctionObjective(linear, {"w": np.zeros((3, 12), np.float32)}, lambda params, batch: params["w"] @ batch.x)
    with strict_device(StrictModule()) as recorder:
        result = train("gpu", train=(X, VALUES), model=model, learning_rate=0.001)
    same(result, train("cpu", train=(X, VALUES), model=model, learning_rate=0.001))
    assert recorder.of_step(1)[1:] == [RECORDS, FINITE]


@pytest.mark.parametrize("how", ["left out", "added", "assigned"])
def test_gradients_of_a_users_function_start_at_zero(how: str) -> None:
    def conditional(params: Views, grads: Views, batch: Batch) -> tuple[Any, int]:
        if how == "left out" and batch.microbatch != 1:
            return linear(params, {"w": batch.device.xp.zeros((3, 12), np.float32)}, batch)  # type: ignore[arg-type]
        error = params["w"] @ batch.x - batch.y
        if how == "added":
            grads["w"] += error @ batch.x.T
        else:
            grads["w"] = error @ batch.x.T
        return 0.5 * np.add.reduce(np.square(error).ravel()), len(batch)

    model = FunctionObjective(conditional, {"w": np.zeros((3, 12), np.float32)})
    options: dict[str, Any] = {"train": (X, VALUES), "model": model, "learning_rate": 0.001}
    with strict_device(StrictModule()):
        result = train("gpu", **options)
    same(result, train("cpu", **options))
    assert result.params["w"].any()


def test_numpy_arrays_in_a_users_function_are_a_mistake() -> None:
    def wrong(params: Views, grads: Views, batch: Batch) -> tuple[Any, int]:
        return linear({"w": np.ones((3, 12), np.float32)}, grads, batch)  # type: ignore[arg-type]

    with strict_device(StrictModule()), pytest.raises(Exception, match=r"Unsupported type <class 'numpy"):
        train("gpu", train=(X, VALUES), model=FunctionObjective(wrong, {"w": np.zeros((3, 12), np.float32)}))


def test_ranks_on_gpus_cannot_share_a_replica() -> None:
    with strict_device(StrictModule()), pytest.raises(ConfigurationError, match="have a replica each"):
        on_ranks(2, communication="shared")


def test_each_row_of_gradients_is_memory_of_its_own() -> None:
    """As with one rank alone: a part of one array would begin where its length says, at an odd address."""

    def bases(communicator: Communicator) -> list[Any]:
        device, _ = choose_device("gpu", communicator.rank)
        plan = Plan(Partition(4, 2, 7), 1, np.dtype(np.float32), 0, 2, device)
        reduction, _ = make_reduction(communicator, plan, "auto")
        return [row.inside.base for row in reduction.rows.values()]  # type: ignore[attr-defined]

    with strict_device(StrictModule(gpus=2)):
        assert run_on_threads(2, bases) == [[None, None]] * 2
