"""kernels.cu without a GPU: it compiles, and what it computes on the CPU is what the CPU's kernels compute."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.communication.tree import scratch_levels, tree_sum
from distsgd.device import Array
from distsgd.kernels import cpu, gpu
from distsgd.kernels.convolution import Window
from distsgd.optimizers import OPTIMIZERS, build_optimizer
from distsgd.option_values import AT_MOST
from distsgd.random import normal, random_words, stream
from distsgd.sampling import lane_bounds
from tests import emulated_kernels
from tests.emulated_kernels import EmulatedModule
from tests.strict_arrays import KERNEL, RECORDER, StrictArray, close
from tests.strict_device import StrictModule, strict_device

DTYPES = [np.float32, np.float64]
emulated = pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT)


NVRTC_IS_HERE = importlib.util.find_spec("cupy") is not None


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with strict_device(StrictModule(), own_kernels=True):
        yield


def there(*arrays: Array) -> list[Any]:
    return [close(array.copy()) for array in arrays]


def numbers(name: str, *shape: int, dtype: Any = np.float32) -> Array:
    return normal(shape, 5, name).astype(dtype)


def test_the_same_names_as_on_the_cpu() -> None:
    assert [name for name in cpu.__all__ if not hasattr(gpu, name)] == ["max_pool_apart", "max_pool_apart_backward"]
    assert cpu.COLUMNS_APART
    assert not gpu.COLUMNS_APART


@pytest.mark.skipif(not NVRTC_IS_HERE, reason="CuPy, which brings NVRTC, isn't installed")
@pytest.mark.parametrize("kind", gpu.TYPES.values())
@pytest.mark.parametrize("architecture", ["compute_75", "compute_90"])
def test_nvrtc_compiles_them(kind: str, architecture: str) -> None:
    nvrtc = pytest.importorskip("cupy.cuda", exc_type=ImportError).nvrtc
    try:
        nvrtc.getVersion()
    except Exception as error:  # what a library that isn't there raises depends on CuPy's version
        pytest.skip(f"CuPy finds no NVRTC: {str(error).splitlines()[0]}")
    program = nvrtc.createProgram(gpu.source(), "kernels.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*gpu.compiler_options(kind), f"--gpu-architecture={architecture}"))
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    assert ".entry adam(" in nvrtc.getPTX(program).decode(errors="replace").replace("\n", "")


@pytest.mark.parametrize("kind", gpu.TYPES.values())
def test_nvcc_compiles_them(kind: str, tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")
    options = [option for option in gpu.compiler_options(kind) if option != "--std=c++17"]
    source = Path(gpu.__file__).with_name("kernels.cu")
    line = ["nvcc", "-std=c++17", *options, "-arch=sm_80", "-ptx", "-o", str(tmp_path / "out.ptx"), str(source)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr


@emulated
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("rates", [{}, {"weight_decay": 0.1}])
def test_updates_have_the_bits_of_the_cpu(name: str, dtype: Any, rates: dict[str, float]) -> None:
    extra = {"dampening": 0.3} if name == "momentum" and rates else {}
    optimizer, count = build_optimizer(name, **rates, **extra), 1003
    params = numbers("w", count, dtype=dtype)
    state = [np.square(numbers(slot, count, dtype=dtype)) for slot in optimizer.slots]
    device_params, *device_state = there(params, *state)
    for step in range(1, 4):
        grads = numbers(f"g{step}", count, dtype=dtype)
        scalars, decay = optimizer.scalars(0.07, step), optimizer.weight_decay
        optimizer.update(
            device_params, close(grads.copy()), tuple(device_state), scalars, decay, close(np.empty((2, count), dtype))
        )
        optimizer.update(params, grads, tuple(state), scalars, decay, np.empty((2, count), dtype))
    for one, other in zip([device_params, *device_state], [params, *state], strict=True):
        assert one.inside.tobytes() == other.tobytes()
    assert len([event for event in RECORDER.events if event.kind == "kernel"]) == 3 * (1 + bool(decay))


@emulated
@pytest.mark.parametrize("count", [1, 3, 4, 5, 1001])
@pytest.mark.parametrize("indices", [(), (3, 2**40, 1), (2**64 - 1, 2**64 - 1, 2**64 - 1)])
def test_random_words_are_numpys(count: int, indices: tuple[int, ...]) -> None:
    key, counter, _ = stream(2**63 - 7, "some purpose", *indices)
    out = np.zeros(count, np.uint64)
    words = [np.uint64(word) for word in (*key, *counter)]
    module = EmulatedModule.compiled(gpu.source(), gpu.compiler_options("float"))
    module.launch("random_words", [out, *words, count], blocks=2, threads=3)
    np.testing.assert_array_equal(out, random_words(count, 2**63 - 7, "some purpose", *indices))


@emulated
def test_the_counter_carries() -> None:
    """A stream that begins just below the end of the lowest word, as none of ours does."""
    counter = np.array([2**64 - 2, 2**64 - 1, 2**64 - 1, 7], np.uint64)
    wanted = np.random.Philox(counter=counter, key=np.array([1, 2], np.uint64)).random_raw(12)
    out = np.zeros(12, np.uint64)
    module = EmulatedModule.compiled(gpu.source(), gpu.compiler_options("float"))
    module.launch("random_words", [out, np.uint64(1), np.uint64(2), *counter, 12])
    np.testing.assert_array_equal(out, wanted)


@emulated
@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (16, 1, 1, 33)])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.999999])
def test_masks_are_those_of_the_cpu(shape: tuple[int, ...], keep: float) -> None:
    place, like = stream(4, "dropout", 1, 2, 3), np.zeros(1, np.float32)
    mask = gpu.keep_mask(close(like), shape, keep, place)
    np.testing.assert_array_equal(mask.inside, cpu.keep_mask(like, shape, keep, place))


@emulated
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (10, 33), (1000, 2)])
def test_softmax_cross_entropy(dtype: Any, shape: tuple[int, int]) -> None:
    outputs, labels = 9 * numbers("z", *shape, dtype=dtype), np.arange(shape[1]) % shape[0]
    losses, gradient = cpu.softmax_cross_entropy(outputs, labels, True)
    found, slope = gpu.softmax_cross_entropy(*there(outputs, labels), True)
    tolerance = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(found.inside, losses, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(slope.inside, gradient, rtol=tolerance, atol=tolerance)
    alone, nothing = gpu.softmax_cross_entropy(*there(outputs, labels), False)
    assert nothing is None
    assert alone.inside.tobytes() == found.inside.tobytes()


@emulated
def test_a_nan_among_the_outputs_stays_one() -> None:
    outputs = numbers("z", 4, 5)
    outputs[0, 1] = outputs[3, 2] = np.nan
    losses, gradient = gpu.softmax_cross_entropy(*there(outputs, np.zeros(5, np.int64)), True)
    assert np.isnan(losses.inside).tolist() == [False, True, True, False, False]
    assert np.isnan(gradient.inside[:, 1:3]).all()


WINDOWS = {
    "tiles": Window((2, 2), (2, 2)),
    "overlaps": Window((3, 2), (2, 1)),
    "leaves out": Window((2, 3), (3, 4)),
}
IMAGES = (3, 8, 6, 5)


@emulated
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", list(WINDOWS))
def test_pooling(window: str, dtype: Any) -> None:
    x, chosen = np.round(numbers("x", *IMAGES, dtype=dtype)), WINDOWS[window]  # rounded, so that there are ties
    y = cpu.max_pool(x, chosen)
    dy = numbers("dy", *y.shape, dtype=dtype)
    there_x, there_y, there_dy = there(x, y, dy)
    np.testing.assert_array_equal(gpu.max_pool(there_x, chosen).inside, y)
    found = gpu.max_pool_backward(there_x, there_y, there_dy, chosen).inside
    np.testing.assert_array_equal(found, cpu.max_pool_backward(x, y, dy, chosen))
    np.testing.assert_array_equal(gpu.average_pool(there_x, chosen).inside, cpu.average_pool(x, chosen))
    found = gpu.average_pool_backward(there_x, there_dy, chosen).inside
    np.testing.assert_array_equal(found, cpu.average_pool_backward(x, dy, chosen))


@emulated
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "window",
    [
        Window((3, 3), (1, 1)),
        Window((3, 2), (2, 1), (1, 0), (1, 1)),
        Window((5, 5), (1, 1), (2, 2), (2, 2)),
        Window((2, 2), (3, 3)),
        Window((1, 1), (1, 1)),
    ],
)
def test_convolution(window: Window, dtype: Any) -> None:
    x, weight = numbers("x", *IMAGES, dtype=dtype), numbers("w", 4, 3, *window.size, dtype=dtype)
    y = cpu.convolve(x, weight, window)
    dy, dweight = numbers("dy", *y.shape, dtype=dtype), np.empty_like(weight)
    cpu.weight_gradient(x, dy, window, dweight)
    there_x, there_weight, there_dy, there_dweight = there(x, weight, dy, np.empty_like(weight))
    gpu.weight_gradient(there_x, there_dy, window, there_dweight)
    tolerance = {"rtol": 200 * np.finfo(dtype).eps, "atol": 200 * np.finfo(dtype).eps}
    np.testing.assert_allclose(gpu.convolve(there_x, there_weight, window).inside, y, **tolerance)
    np.testing.assert_allclose(there_dweight.inside, dweight, **tolerance)
    dx = gpu.input_gradient(there_weight, there_dy, window, *IMAGES[1:3]).inside
    np.testing.assert_allclose(dx, cpu.input_gradient(weight, dy, window, *IMAGES[1:3]), **tolerance)


@emulated
@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_normalization(dtype: Any) -> None:
    rows, dy = numbers("rows", 6, 37, dtype=dtype) + 3, numbers("dy", 6, 37, dtype=dtype)
    scale, shift = numbers("scale", 6, dtype=dtype), numbers("shift", 6, dtype=dtype)
    wanted, found = cpu.normalize(rows, scale, shift, 1e-5), gpu.normalize(*there(rows, scale, shift), 1e-5)
    tolerance = {"rtol": 100 * np.finfo(dtype).eps, "atol": 100 * np.finfo(dtype).eps}
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.inside, other, **tolerance)
    _, mean, _, inverse = wanted
    for way_back in ("normalize_backward", "transform_backward"):
        slopes, there_slopes = np.empty((2, 6), dtype), there(*np.empty((2, 6), dtype))
        dx = getattr(cpu, way_back)(rows, mean, inverse, scale, dy, *slopes)
        there_dx = getattr(gpu, way_back)(*there(rows, mean, inverse, scale, dy), *there_slopes)
        np.testing.assert_allclose(there_dx.inside, dx, **tolerance)
        for one, other in zip(there_slopes, slopes, strict=True):
            np.testing.assert_allclose(one.inside, other, **tolerance)


@emulated
@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("blocks", [1, 3])
def test_sums_by_many_threads(blocks: int, threads: int) -> None:
    """The tree over the threads of a block, whose memory they share."""
    module = EmulatedModule.compiled(gpu.source(), gpu.compiler_options("float"))
    rows = numbers("rows", 5, 1001)
    sums, squares = np.empty(5, np.float32), np.empty(4)
    module.launch("row_sums", [rows, sums, 5, 1001], blocks, threads)
    np.testing.assert_allclose(sums, rows.sum(axis=1, dtype=np.float64), rtol=1e-5)
    flat = rows.ravel()[:4900]
    module.launch("block_squares", [flat, squares, 4, 1500, 4900], blocks, threads)
    wanted = [np.square(part, dtype=np.float64).sum() for part in np.split(flat, [1500, 3000, 4500])]
    np.testing.assert_allclose(squares, wanted, rtol=1e-12)


@emulated
def test_block_squares() -> None:
    values = numbers("v", 1000)
    found = gpu.block_squares(close(values.copy()), 300)
    np.testing.assert_allclose(found.inside, cpu.block_squares(values, 300), rtol=1e-12)


@emulated
def test_arrays_that_are_not_contiguous_are_refused() -> None:
    wide = close(np.zeros((4, 6), np.float32))
    with pytest.raises(ValueError, match=r"kernel sgd: expected contiguous arrays, got one of shape \(4, 3\)"):
        gpu.sgd(wide[:, ::2], wide[:, ::2], 0.1)
    assert isinstance(wide, StrictArray)


@emulated
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lanes", "examples"), [(1, 4), (2, 2), (3, 9), (4, 4), (7, 3), (8, 100), (13, 11)])
def test_the_trees_sum_in_one_launch(lanes: int, examples: int, dtype: Any) -> None:
    """The bits of the additions in pairs, empty lanes left out, with a division and without."""
    bounds, count = lane_bounds(examples, lanes), 1003
    host = {(lane, lane + 1): numbers(f"row {lane}", count, dtype=dtype) * 10.0 ** (lane % 5) for lane in range(lanes)}
    host[(0, 1)][:4] = [-0.0, np.inf, np.nan, 1e30]
    scratch = np.empty((scratch_levels(lanes), count), dtype)
    for span in (slice(0, count), slice(5, 700)):
        wanted = tree_sum(host, (0, lanes), bounds, span, scratch)
        rows = {node: close(row.astype(dtype)) for node, row in host.items()}
        found = tree_sum(rows, (0, lanes), bounds, span, close(scratch.copy()))
        assert wanted is not None
        assert found is not None
        RECORDER.events.clear()
        assert found.compute().inside.tobytes() == wanted.compute().tobytes()  # type: ignore[attr-defined]
        size = span.stop - span.start
        out = found.divided(float(examples), close(np.empty(size, dtype))).inside  # type: ignore[attr-defined]
        assert out.tobytes() == wanted.divided(float(examples), np.empty(size, dtype)).tobytes()
        launches = [event.what for event in RECORDER.events if event.kind == KERNEL]
        assert launches == ["sum_rows"] * (2 if wanted.rows > 1 else 1)


@emulated
def test_rows_of_other_lengths_are_not_summed() -> None:
    add = gpu.sum_of_rows(there(np.zeros(4), np.zeros(5)), [0, 1])
    with pytest.raises(ValueError, match=r"expected contiguous rows of shape \(4,\), got \(5,\)"):
        add(close(np.empty(4)), 1.0)


def test_a_tree_of_the_most_lanes_has_room() -> None:
    """One row a level, and one: what lies on the stack at most."""
    most = AT_MOST["logical_ranks"]
    assert f"#define HIGHEST {most.bit_length() + 1}" in gpu.source()
