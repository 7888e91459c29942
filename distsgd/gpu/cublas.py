"""Matrix products on a GPU by cuBLAS's gemmEx, in a given precision.

cuBLAS is called through ctypes, not through CuPy: CuPy's own products refuse while a stream is being captured into a
graph, and take the precision of float32 products from the environment (CUPY_TF32). No other code uses these handles.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Mapping
from ctypes import POINTER, byref, c_int, c_size_t, c_void_p
from typing import Any

from distsgd.core.device import Array, array_module

WORKSPACE_BYTES = 32 << 20
"""What NVIDIA advises for Hopper. With a workspace for each stream, a product has the same bits each time."""

FLOAT32, FLOAT64 = 0, 1
"""CUDA_R_32F, CUDA_R_64F."""
COMPUTE_FLOAT64 = 70
COMPUTE: Mapping[str, int] = {"float32": 68, "tf32": 77, "bfloat16": 75, "float16": 74}
"""cublasComputeType_t of products of float32: CUBLAS_COMPUTE_32F and its FAST_TF32, FAST_16BF and FAST_16F, which round
what goes in and add in float32. 32F is full float32 under the default math mode, which handles here keep."""
AS_IT_IS, TRANSPOSED = 0, 1
"""CUBLAS_OP_N, CUBLAS_OP_T."""
_CHOSEN_BY_CUBLAS = -1

SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "cublasCreate_v2": (POINTER(c_void_p),),
    "cublasSetStream_v2": (c_void_p, c_void_p),
    "cublasSetWorkspace_v2": (c_void_p, c_void_p, c_size_t),
    "cublasGemmEx": (
        c_void_p, c_int, c_int, c_int, c_int, c_int,  # handle, operations on A and B, m, n, k
        c_void_p, c_void_p, c_int, c_int, c_void_p, c_int, c_int,  # alpha; A, its type, lda; B, its type, ldb
        c_void_p, c_void_p, c_int, c_int, c_int, c_int,  # beta; C, its type, ldc; compute type, algorithm
    ),
}  # fmt: skip
"""The argument types of the functions, as in cublas_api.h; each returns a status, 0 for success."""


_KINDS: Mapping[str, tuple[int, Any, Any]] = {
    "f": (FLOAT32, ctypes.c_float(1.0), ctypes.c_float(0.0)),
    "d": (FLOAT64, ctypes.c_double(1.0), ctypes.c_double(0.0)),
}
"""What cuBLAS calls a dtype, and 1 and 0 as it takes them."""


class Handles(threading.local):
    """This thread's handles, by device and stream; each with its stream and its workspace."""

    def __init__(self) -> None:
        self.by_stream: dict[tuple[Any, int, int], tuple[Any, c_void_p, Array]] = {}


HANDLES = Handles()


def multiply(a: Array, b: Array, out: Array | None = None, precision: str = "float32") -> Array:
    """a b for a (m, k) and b (k, n) of one dtype, in `out` (m, n), contiguous, where it is given.

    The first product of a stream makes a handle, which can't be done while the stream is being captured. Raises
    TypeError for dtypes that differ or aren't floats, ValueError for shapes that don't fit.
    """
    xp, kind = array_module(a), _KINDS.get(a.dtype.char)
    if kind is None or array_module(b) is not xp or b.dtype != a.dtype or (out is not None and out.dtype != a.dtype):
        kinds = ", ".join(f"{type(one).__module__}'s {one.dtype}" for one in (a, b, out) if one is not None)
        raise TypeError(f"product: expected arrays of a GPU, all of float32 or all of float64, got {kinds}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"product: expected shapes (m, k) and (k, n), got {a.shape} and {b.shape}")
    (m, k), n = a.shape, b.shape[1]
    result: Array = xp.empty((m, n), a.dtype) if out is None else out
    if result.shape != (m, n) or not result.flags.c_contiguous:
        raise ValueError(f"product: expected contiguous memory of shape {(m, n)}, got shape {result.shape}")
    if 0 in (m, k, n):
        result[...] = 0.0
        return result
    a, of_a, lda = _columns(a, xp)
    b, of_b, ldb = _columns(b, xp)
    (library, handle), (code, one, zero) = _handle(xp), kind
    compute = COMPUTE[precision] if code == FLOAT32 else COMPUTE_FLOAT64
    # cuBLAS stores matrices by columns, so that it computes the transposed result: bᵀ aᵀ.
    status = library.cublasGemmEx(
        handle, of_b, of_a, n, m, k,
        byref(one), _address(b), code, ldb, _address(a), code, lda,
        byref(zero), _address(result), code, n, compute, _CHOSEN_BY_CUBLAS,
    )  # fmt: skip
    _check(library, status, f"a product of {m}x{k} and {k}x{n}")
    return result


def _columns(array: Array, xp: Any) -> tuple[Array, int, int]:
    """(the array or a copy, cuBLAS's operation on it, the length of a column)."""
    if array.flags.c_contiguous:
        return array, AS_IT_IS, array.shape[1]
    if array.flags.f_contiguous:
        return array, TRANSPOSED, array.shape[0]
    return xp.ascontiguousarray(array), AS_IT_IS, array.shape[1]


def _address(array: Array) -> int:
    return array.data.ptr  # type: ignore[attr-defined, no-any-return]


def _handle(xp: Any) -> tuple[Any, c_void_p]:
    """(cuBLAS, this thread's handle for the stream that it works on)."""
    stream = xp.cuda.get_current_stream().ptr
    key = (xp, xp.cuda.runtime.getDevice(), stream)
    found = HANDLES.by_stream.get(key)
    if found is None:
        library, handle, workspace = load(xp), c_void_p(), xp.empty(WORKSPACE_BYTES, "u1")
        _check(library, library.cublasCreate_v2(byref(handle)), "a handle")
        _check(library, library.cublasSetStream_v2(handle, stream), "a stream")
        _check(library, library.cublasSetWorkspace_v2(handle, _address(workspace), WORKSPACE_BYTES), "a workspace")
        found = HANDLES.by_stream[key] = (library, handle, workspace)
    return found[0], found[1]


def load(xp: Any) -> Any:
    """cuBLAS, which CuPy finds and loads; a loaded library is found by its name."""
    xp.cuda.device.get_cublas_handle()
    major = xp.cuda.runtime.runtimeGetVersion() // 1000
    return declared(ctypes.CDLL(f"cublas64_{major}.dll" if sys.platform == "win32" else f"libcublas.so.{major}"))


def declared(library: Any) -> Any:
    """The library, with its functions' types declared."""
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    library.cublasGetStatusString.argtypes, library.cublasGetStatusString.restype = (c_int,), ctypes.c_char_p
    return library


def _check(library: Any, status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"cuBLAS: {what} failed: {library.cublasGetStatusString(status).decode()}")
