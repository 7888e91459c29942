"""kernels.cu compiled for the CPU: its own source, with threads of the host in place of the GPU's."""

from __future__ import annotations

import ctypes
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


class EmulatedModule:
    """The compiled kernels of one type, launched with any number of blocks, one after the other, and of threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library, self._lock = library, threading.Lock()

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
        subprocess.run([COMPILER, *flags, *kept, "kernels.cpp", "-o", "kernels.so"], cwd=folder, check=True, timeout=60)
        library = ctypes.CDLL(str(folder / "kernels.so"))
        shutil.rmtree(folder)
        return EmulatedModule(library)

    def launch(self, name: str, arguments: Sequence[Any], blocks: int = 1, threads: int = 1) -> None:
        """Runs a kernel and returns when it has ended."""
        converted = [_converted(argument) for argument in arguments]
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


def _converted(argument: Any) -> Any:
    """As CuPy hands it to a kernel: addresses, 64-bit integers, doubles."""
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, np.uint64):
        return ctypes.c_uint64(int(argument))
    assert type(argument) in (int, float), type(argument)
    return ctypes.c_longlong(argument) if isinstance(argument, int) else ctypes.c_double(argument)
