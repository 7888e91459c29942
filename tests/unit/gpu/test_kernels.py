"""kernels.cu without a GPU: it compiles, and its threads work together; test_gpu_cases compares it with the CPU."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distsgd.core.kernels import cpu
from distsgd.core.layout import Views
from distsgd.core.random import normal, random_words, stream
from distsgd.data.sampling import microbatch_bounds
from distsgd.gpu import kernels as gpu
from distsgd.nn.batch import Batch
from distsgd.nn.layers import BatchNormalization
from distsgd.parallel.tree import scratch_levels, tree_sum
from distsgd.run.config import MOST_MICROBATCHES
from tests import emulated_kernels
from tests.emulated_kernels import EmulatedModule
from tests.strict_arrays import KERNEL, close
from tests.strict_device import StrictModule, strict_device
from tests.waiting import LIMIT

pytestmark = pytest.mark.stand_in

emulated = pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT)


NVRTC_IS_HERE = importlib.util.find_spec("cupy") is not None


def test_the_same_names_as_on_the_cpu() -> None:
    assert [name for name in cpu.__all__ if not hasattr(gpu, name)] == [
        "add_positive", "max_pool_apart", "max_pool_apart_backward",
    ]  # fmt: skip
    assert cpu.FUSES
    assert not gpu.FUSES


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
    done = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr


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
@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("blocks", [1, 3])
def test_sums_by_many_threads(blocks: int, threads: int) -> None:
    """The tree over the threads of a block, whose memory they share."""
    module = EmulatedModule.compiled(gpu.source(), gpu.compiler_options("float"))
    rows = normal((5, 1001), 5, "rows").astype(np.float32)
    sums, squares = np.empty(5, np.float32), np.empty(4)
    module.launch("row_sums", [rows, sums, 5, 1001], blocks, threads)
    np.testing.assert_allclose(sums, rows.sum(axis=1, dtype=np.float64), rtol=1e-5)
    flat = rows.ravel()[:4900]
    module.launch("block_squares", [flat, squares, 4, 1500, 4900], blocks, threads)
    wanted = [np.square(part, dtype=np.float64).sum() for part in np.split(flat, [1500, 3000, 4500])]
    np.testing.assert_allclose(squares, wanted, rtol=1e-12)


@emulated
@pytest.mark.parametrize(("microbatches", "launches"), [(1, 1), (4, 2)])
def test_the_trees_sum_is_one_launch(microbatches: int, launches: int) -> None:
    """Also with the division; without one, a single row is the sum already."""
    host = {(microbatch, microbatch + 1): np.ones(100, np.float32) for microbatch in range(microbatches)}
    with strict_device(StrictModule(), own_kernels=True) as recorder:
        rows = {node: close(row) for node, row in host.items()}
        scratch = close(np.empty((scratch_levels(microbatches), 100), np.float32))
        found = tree_sum(rows, (0, microbatches), microbatch_bounds(8, microbatches), slice(0, 100), scratch)
        assert found is not None
        found.compute()
        found.divided(8.0, close(np.empty(100, np.float32)))
        assert [event.what for event in recorder.events if event.kind == KERNEL] == ["sum_rows"] * launches


def test_a_tree_of_the_most_microbatches_has_memory() -> None:
    """One row a level, and one: what lies on the stack at most."""
    assert f"#define HIGHEST {MOST_MICROBATCHES.bit_length() + 1}" in gpu.source()


@emulated
def test_an_epsilon_without_a_point() -> None:
    """CuPy hands a kernel an integer's bits for an int, and that is another number where it expects a double."""
    rows, ones = normal((2, 9), 1, "rows").astype(np.float32), np.ones(2, np.float32)
    layer = BatchNormalization(2, epsilon=1)
    batch = Batch(rows, ones, np.arange(9), training=True)
    wanted, _ = layer.forward(Views({"scale": ones, "shift": ones}, ones), rows, batch, "")
    with strict_device(StrictModule(), own_kernels=True):
        there, params = close(rows), {"scale": close(ones), "shift": close(ones)}
        found, _ = layer.forward(Views(params, params["scale"]), there, replace(batch, x=there), "")
        np.testing.assert_allclose(found.get(), wanted, rtol=1e-6)
