"""kernels.cu compiled for the CPU: its own source, with threads of the host in place of the GPU's."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.waiting import LIMIT

COMPILER = shutil.which("g++")
WITHOUT = "kernels.cu can't be compiled for the CPU: there is no g++"

_BEFORE = r"""
#include <cmath>
#include <pthread.h>
using std::sqrt; using std::exp; using std::log;
struct Three { unsigned x, y, z; };
static thread_local Three blockIdx, threadIdx, blockDim{1, 1, 1}, gridDim{1, 1, 1};
static pthread_barrier_t together;
#define __global__
#define __device__ static inline
#define __shared__ static
static inline void __syncthreads() { if (blockDim.x > 1) pthread_barrier_wait(&together); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}
extern "C" void gather(unsigned threads) { pthread_barrier_init(&together, 0, threads); }
extern "C" void become(unsigned block, unsigned blocks, unsigned thread, unsigned threads) {
    blockIdx.x = block, gridDim.x = blocks, threadIdx.x = thread, blockDim.x = threads;
}
"""


_WINDOW_NUMBERS = 11
"""Of kernels.cu's WINDOW."""


class EmulatedModule:
    """The compiled kernels of one type, launched with any number of blocks, one after the other, and of threads."""

    def __init__(self, library: ctypes.CDLL, kinds: dict[str, list[str]]) -> None:
        self._library, self._kinds, self._lock = library, kinds, threading.Lock()

    @staticmethod
    @lru_cache(maxsize=8)
    def compiled(code: str, options: tuple[str, ...]) -> EmulatedModule:
        """Compiled as the options say, without contraction; kept for the session."""
        assert COMPILER is not None, WITHOUT
        assert "--fmad=false" in options
        kept = [option for option in options if option.startswith("-D")]
        folder = Path(tempfile.mkdtemp(prefix="distsgd-kernels-"))
        (folder / "kernels.cpp").write_text(_BEFORE + code, encoding="utf-8")
        flags = [
            "-std=c++17",
            "-O2",
            "-ffp-contract=off",
            "-fPIC",
            "-shared",
            "-pthread",
            "-Wall",
            "-Wno-unknown-pragmas",
        ]
        subprocess.run(
            [COMPILER, *flags, *kept, "kernels.cpp", "-o", "kernels.so"], cwd=folder, check=True, timeout=LIMIT
        )
        library = ctypes.CDLL(str(folder / "kernels.so"))
        shutil.rmtree(folder)
        return EmulatedModule(library, _kinds(code, "float64" if "-DREAL=double" in options else "float32"))

    def launch(self, name: str, arguments: Sequence[Any], blocks: int = 1, threads: int = 1) -> None:
        """Runs a kernel and returns when it has ended."""
        converted = [_converted(argument, kind) for argument, kind in zip(arguments, self._kinds[name], strict=True)]
        function = getattr(self._library, name)

        def run(thread: int) -> None:
            for block in range(blocks):
                self._library.become(block, blocks, thread, threads)
                function(*converted)

        with self._lock:  # shared memory is there once
            self._library.gather(threads)
            if threads == 1:
                run(0)
                return
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run, range(threads)))


def _kinds(code: str, real: str) -> dict[str, list[str]]:
    """What each kernel takes, by its name: a type by value, or `dtype*` for arrays."""
    dtypes = {"T": real, "double": "float64", "index_t": "int64", "word_t": "uint64", "bool": "bool"}
    found = {}
    for name, printed in re.findall(r"__global__ void (\w+)\((.*?)\) {", code, re.DOTALL):
        printed = re.sub(r"STEP_NUMBER\((\w+)\)", r"double \1, const double* \1_at", printed)
        printed = printed.replace("WINDOW", ", ".join(["index_t part"] * _WINDOW_NUMBERS))
        types = [one.replace("const", "").split()[0] for one in printed.split(",")]
        found[name] = [f"{dtypes[kind[:-1]]}*" if kind.endswith("*") else kind for kind in types]
    return found


def _converted(argument: Any, kind: str) -> Any:
    """As CuPy hands it to a kernel: addresses, 64-bit integers, doubles, as the argument's own type has it.

    A kernel takes the same bits for what it expects, so a number of another type would be another number.
    """
    if isinstance(argument, np.ndarray):
        assert kind == f"{argument.dtype}*", f"{argument.dtype} for {kind}"
        assert argument.flags.c_contiguous
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, np.uint64):
        assert kind == "word_t" or (kind.endswith("*") and argument == 0), f"{argument!r} for {kind}"
        return ctypes.c_uint64(int(argument))
    assert (type(argument), kind) in ((int, "index_t"), (float, "double")), f"{argument!r} for {kind}"
    return ctypes.c_longlong(argument) if isinstance(argument, int) else ctypes.c_double(argument)
