"""Each kernel of the GPU against the CPU's: run on a GPU by tests/gpu, on the stand-in for one by tests/unit.

The module that collects these tests has a fixture `gpu`, the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distsgd.core.device import Array, Device, to_host
from distsgd.core.kernels import cpu, kernels_for
from distsgd.core.kernels.convolution import Window
from distsgd.core.random import normal, stream
from distsgd.data.sampling import microbatch_bounds
from distsgd.optim.registry import OPTIMIZERS, build_optimizer
from distsgd.parallel.tree import scratch_levels, tree_sum

DTYPES = [np.float32, np.float64]
IMAGES = (3, 8, 6, 5)
POOLING = {
    "tiles": Window((2, 2), (2, 2)),
    "overlaps": Window((3, 2), (2, 1)),
    "leaves out": Window((2, 3), (3, 4)),
}
CONVOLUTIONS = [
    Window((3, 3), (1, 1)),
    Window((3, 2), (2, 1), (1, 0), (1, 1)),
    Window((5, 5), (1, 1), (2, 2), (2, 2)),
    Window((2, 2), (3, 3)),
    Window((1, 1), (1, 1)),
]
PRODUCTS = [(1, 1, 1), (5, 7, 3), (10, 50, 33), (64, 784, 25), (33, 1, 9), (1, 40, 1), (17, 1, 1), (1, 300, 19)]
"""(m, k, n) of matrix products."""


def numbers(name: str, *shape: int, dtype: Any = np.float32) -> Array:
    return normal(shape, 5, name).astype(dtype)


def there(gpu: Device, *arrays: Array) -> list[Any]:
    """Copies on the device."""
    return [gpu.put(array.copy()) for array in arrays]


def within(dtype: Any, factor: int) -> dict[str, float]:
    """Tolerances of so many roundings."""
    return {"rtol": factor * float(np.finfo(dtype).eps), "atol": factor * float(np.finfo(dtype).eps)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("rates", [{}, {"weight_decay": 0.1}])
def test_updates_have_the_bits_of_the_cpu(gpu: Device, name: str, dtype: Any, rates: dict[str, float]) -> None:
    extra = {"dampening": 0.3} if name == "momentum" and rates else {}
    optimizer, count = build_optimizer(name, **rates, **extra), 1003
    params = numbers("w", count, dtype=dtype)
    state = [np.square(numbers(slot, count, dtype=dtype)) for slot in optimizer.slots]
    device_params, *device_state = there(gpu, params, *state)
    scratch = gpu.xp.empty((2, count), dtype)
    for step in range(1, 4):
        grads = numbers(f"g{step}", count, dtype=dtype)
        scalars, decay = optimizer.scalars(0.07, step), optimizer.weight_decay
        optimizer.update(device_params, gpu.put(grads.copy()), tuple(device_state), scalars, decay, scratch)
        optimizer.update(params, grads, tuple(state), scalars, decay, np.empty((2, count), dtype))
    for one, other in zip([device_params, *device_state], [params, *state], strict=True):
        assert to_host(one).tobytes() == other.tobytes()


@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (16, 1, 1, 33)])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.999999])
def test_masks_are_those_of_the_cpu(gpu: Device, shape: tuple[int, ...], keep: float) -> None:
    place, like = stream(4, "dropout", 1, 2, 3), np.zeros(1, np.float32)
    (there_like,) = there(gpu, like)
    mask = kernels_for(there_like).keep_mask(there_like, shape, keep, place)
    np.testing.assert_array_equal(to_host(mask), cpu.keep_mask(like, shape, keep, place))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (10, 33), (1000, 2)])
def test_softmax_cross_entropy(gpu: Device, dtype: Any, shape: tuple[int, int]) -> None:
    outputs, labels = 9 * numbers("z", *shape, dtype=dtype), np.arange(shape[1]) % shape[0]
    losses, gradient = cpu.softmax_cross_entropy(outputs, labels, True)
    arrays = there(gpu, outputs, labels)
    found, slope = kernels_for(arrays[0]).softmax_cross_entropy(*arrays, True)
    np.testing.assert_allclose(to_host(found), losses, **within(dtype, 20))
    np.testing.assert_allclose(to_host(slope), gradient, **within(dtype, 20))
    alone, nothing = kernels_for(arrays[0]).softmax_cross_entropy(*arrays, False)
    assert nothing is None
    assert to_host(alone).tobytes() == to_host(found).tobytes()


def test_a_nan_among_the_outputs_stays_one(gpu: Device) -> None:
    outputs = numbers("z", 4, 5)
    outputs[0, 1] = outputs[3, 2] = np.nan
    arrays = there(gpu, outputs, np.zeros(5, np.int64))
    losses, gradient = kernels_for(arrays[0]).softmax_cross_entropy(*arrays, True)
    assert np.isnan(to_host(losses)).tolist() == [False, True, True, False, False]
    assert np.isnan(to_host(gradient)[:, 1:3]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", list(POOLING))
def test_pooling(gpu: Device, window: str, dtype: Any) -> None:
    x, chosen = np.round(numbers("x", *IMAGES, dtype=dtype)), POOLING[window]  # rounded, so that there are ties
    y = cpu.max_pool(x, chosen)
    dy = numbers("dy", *y.shape, dtype=dtype)
    there_x, there_y, there_dy = there(gpu, x, y, dy)
    kernels = kernels_for(there_x)
    np.testing.assert_array_equal(to_host(kernels.max_pool(there_x, chosen)), y)
    found = to_host(kernels.max_pool_backward(there_x, there_y, there_dy, chosen))
    np.testing.assert_array_equal(found, cpu.max_pool_backward(x, y, dy, chosen))
    np.testing.assert_array_equal(to_host(kernels.average_pool(there_x, chosen)), cpu.average_pool(x, chosen))
    found = to_host(kernels.average_pool_backward(there_x, there_dy, chosen))
    np.testing.assert_array_equal(found, cpu.average_pool_backward(x, dy, chosen))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", CONVOLUTIONS)
def test_convolution(gpu: Device, window: Window, dtype: Any) -> None:
    x, weight = numbers("x", *IMAGES, dtype=dtype), numbers("w", 4, 3, *window.size, dtype=dtype)
    y = cpu.convolve(x, weight, window)
    dy, dweight = numbers("dy", *y.shape, dtype=dtype), np.empty_like(weight)
    cpu.weight_gradient(x, dy, window, dweight)
    there_x, there_weight, there_dy, there_dweight = there(gpu, x, weight, dy, np.full_like(weight, np.nan))
    kernels = kernels_for(there_x)
    kernels.weight_gradient(there_x, there_dy, window, there_dweight)
    np.testing.assert_allclose(to_host(kernels.convolve(there_x, there_weight, window)), y, **within(dtype, 200))
    np.testing.assert_allclose(to_host(there_dweight), dweight, **within(dtype, 200))
    dx = kernels.input_gradient(there_weight, there_dy, window, *IMAGES[1:3])
    np.testing.assert_allclose(to_host(dx), cpu.input_gradient(weight, dy, window, *IMAGES[1:3]), **within(dtype, 200))
    there_dweight[...] = np.nan
    both = kernels.gradients(there_x, there_weight, there_dy, window, there_dweight)
    np.testing.assert_array_equal(to_host(both), to_host(dx))
    np.testing.assert_allclose(to_host(there_dweight), dweight, **within(dtype, 200))
    assert kernels.gradients(there_x, there_weight, there_dy, window, there_dweight, False) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_normalization(gpu: Device, dtype: Any) -> None:
    rows, dy = numbers("rows", 6, 37, dtype=dtype) + 3, numbers("dy", 6, 37, dtype=dtype)
    scale, shift = numbers("scale", 6, dtype=dtype), numbers("shift", 6, dtype=dtype)
    arrays = there(gpu, rows, scale, shift)
    kernels = kernels_for(arrays[0])
    wanted, found = cpu.normalize(rows, scale, shift, 1e-5), kernels.normalize(*arrays, 1e-5)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(to_host(one), other, **within(dtype, 100))
    _, mean, _, inverse = wanted
    for backward in ("normalize_backward", "transform_backward"):
        slopes, there_slopes = np.empty((2, 6), dtype), there(gpu, *np.full((2, 6), np.nan, dtype))
        dx = getattr(cpu, backward)(rows, mean, inverse, scale, dy, *slopes)
        there_dx = getattr(kernels, backward)(*there(gpu, rows, mean, inverse, scale, dy), *there_slopes)
        np.testing.assert_allclose(to_host(there_dx), dx, **within(dtype, 100))
        for one, other in zip(there_slopes, slopes, strict=True):
            np.testing.assert_allclose(to_host(one), other, **within(dtype, 100))
    factor = scale * inverse
    found = kernels.transform(*there(gpu, rows, mean, factor, shift))
    np.testing.assert_allclose(to_host(found), cpu.transform(rows, mean, factor, shift), **within(dtype, 20))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", PRODUCTS)
def test_products(gpu: Device, size: tuple[int, int, int], dtype: Any) -> None:
    """All memory orders that a step has: rows, transposed views, and results in the gradient's own memory."""
    m, k, n = size
    a, b = numbers("a", m, k, dtype=dtype), numbers("b", k, n, dtype=dtype)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    bound = {"rtol": 0, "atol": 4 * float(np.finfo(dtype).eps) * (k + 4) * float(np.abs(a).max() * np.abs(b).max())}
    lefts, rights = (there(gpu, a)[0], there(gpu, a.T)[0].T), (there(gpu, b)[0], there(gpu, b.T)[0].T)
    flat = gpu.put(np.full(m * n + 3, np.nan, dtype))
    for left in lefts:
        for right in rights:
            kernels, out = kernels_for(left), flat[3:].reshape(m, n)
            np.testing.assert_allclose(to_host(kernels.multiply(left, right)), exact, **bound)
            kernels.multiply(left, right, out=out)
            np.testing.assert_allclose(to_host(out), exact, **bound)
            assert np.isnan(to_host(flat[:3])).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_and_rows(gpu: Device, dtype: Any) -> None:
    rows = numbers("rows", 5, 1001, dtype=dtype)
    there_rows, out = there(gpu, rows, np.full(5, np.nan, dtype))
    kernels = kernels_for(there_rows)
    kernels.row_sums(there_rows, out)
    np.testing.assert_allclose(to_host(out), rows.sum(axis=1, dtype=np.float64), **within(dtype, 500))
    np.testing.assert_array_equal(to_host(kernels.positive(there_rows)), cpu.positive(rows))
    squares = kernels.block_squares(there_rows.ravel(), 300)
    np.testing.assert_allclose(to_host(squares), cpu.block_squares(rows.ravel(), 300), rtol=1e-12)
    target, source = numbers("target", 999, dtype=dtype), numbers("source", 999, dtype=dtype)
    there_target, there_source = there(gpu, target, source)
    kernels.add_scaled(there_target, there_source, 0.3, None)
    cpu.add_scaled(target, source, 0.3, np.empty_like(source))
    kernels.scale(there_target, 0.7)
    cpu.scale(target, 0.7)
    assert to_host(there_target).tobytes() == target.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("microbatches", "examples"), [(1, 4), (2, 2), (3, 9), (4, 4), (7, 3), (8, 100), (13, 11)])
def test_the_trees_sum(gpu: Device, microbatches: int, examples: int, dtype: Any) -> None:
    """The bits of the additions in pairs, empty microbatches skipped, with a division and without."""
    bounds, count = microbatch_bounds(examples, microbatches), 1003
    host = {
        (microbatch, microbatch + 1): numbers(f"row {microbatch}", count, dtype=dtype) * 10.0 ** (microbatch % 5)
        for microbatch in range(microbatches)
    }
    host[(0, 1)][:4] = [-0.0, np.inf, np.nan, 1e30]
    host = {node: row.astype(dtype) for node, row in host.items()}
    scratch = np.empty((scratch_levels(microbatches), count), dtype)
    for span in (slice(0, count), slice(5, 700)):
        wanted = tree_sum(host, (0, microbatches), bounds, span, scratch)
        rows = {node: gpu.put(row.copy()) for node, row in host.items()}
        found = tree_sum(rows, (0, microbatches), bounds, span, gpu.put(scratch.copy()))
        assert wanted is not None
        assert found is not None
        assert to_host(found.compute()).tobytes() == wanted.compute().tobytes()
        out, size = gpu.put(np.zeros(count, dtype)), span.stop - span.start
        divided = to_host(found.divided(float(examples), out[:size]))
        assert divided.tobytes() == wanted.divided(float(examples), np.empty(size, dtype)).tobytes()


def test_rows_of_other_lengths_are_not_summed(gpu: Device) -> None:
    rows = there(gpu, np.zeros(4), np.zeros(5))
    add = kernels_for(rows[0]).sum_of_rows(rows, [0, 1])
    with pytest.raises(ValueError, match=r"expected contiguous rows of shape \(4,\), got \(5,\)"):
        add(gpu.put(np.zeros(4)), 1.0)


def test_the_same_bits_each_time(gpu: Device) -> None:
    """A product's sums may be cut among threads in any way, but always the same one."""
    a, b = there(gpu, numbers("a", 300, 1000), numbers("b", 1000, 257))
    first = to_host(kernels_for(a).multiply(a, b)).tobytes()
    for _ in range(20):
        assert to_host(kernels_for(a).multiply(a, b)).tobytes() == first


def test_arrays_that_are_not_contiguous_are_refused(gpu: Device) -> None:
    wide = gpu.xp.zeros((4, 6), np.float32)
    with pytest.raises(ValueError, match=r"kernel sgd: expected contiguous arrays, got one of shape \(4, 3\)"):
        kernels_for(wide).sgd(wide[:, ::2], wide[:, ::2], 0.1)
