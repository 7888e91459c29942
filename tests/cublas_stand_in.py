"""A stand-in for cuBLAS: gemmEx on memory of the host, with exactly its arguments, its columns and its rounding."""

from __future__ import annotations

import ctypes
from ctypes import c_int
from types import SimpleNamespace
from typing import Any

import numpy as np

from distsgd.gpu.cublas import SIGNATURES, WORKSPACE_BYTES
from tests.strict_arrays import RECORDER

HANDLES, STREAMS, COMPUTED = [0xB1A5], {}, []
"""Handles given out; the stream and the workspace of each; compute types of the products so far."""


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """float32 with so many bits of its 23 after the point, to the nearest, ties to even."""
    words, drop = np.ascontiguousarray(values).view(np.uint32), 23 - bits
    half = np.uint32((1 << (drop - 1)) - 1) + ((words >> np.uint32(drop)) & np.uint32(1))
    short = ((words + half) & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)).view(np.float32)
    return np.where(np.isfinite(values), short, values)


def as_tensor_cores_see(values: np.ndarray, compute: int) -> np.ndarray:
    """Operands of float32 as the compute type lets them in."""
    if compute == 77:  # CUBLAS_COMPUTE_32F_FAST_TF32
        return rounded(values, 10)
    if compute == 75:  # CUBLAS_COMPUTE_32F_FAST_16BF
        return rounded(values, 7)
    if compute == 74:  # CUBLAS_COMPUTE_32F_FAST_16F
        return values.astype(np.float16).astype(np.float32)
    assert compute in (68, 70), compute  # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F
    return values


def matrix(address: int, rows: int, columns: int, leading: int, dtype: type) -> np.ndarray:
    """A matrix in columns, `leading` elements apart; it has to lie in memory that was asked for."""
    assert rows >= 1, "cuBLAS is not to be asked for nothing"
    assert columns >= 1
    assert leading >= rows, f"a leading dimension of {leading} for {rows} rows"
    size = np.dtype(dtype).itemsize
    memory = RECORDER.memory(address, (leading * (columns - 1) + rows) * size).view(dtype)
    return np.lib.stride_tricks.as_strided(memory, (rows, columns), (size, leading * size))


def gemm(
    handle: int, of_a: int, of_b: int, m: int, n: int, k: int,
    alpha: int, a: int, type_a: int, lda: int, b: int, type_b: int, ldb: int,
    beta: int, c: int, type_c: int, ldc: int, compute: int, algorithm: int,
) -> None:  # fmt: skip
    """C := alpha op(A) op(B) + beta C, where C isn't read if beta is 0."""
    assert STREAMS[handle][1], "a handle without a workspace of its own"
    assert STREAMS[handle][0] == RECORDER.streams.current, "a handle of another stream"
    assert type_a == type_b == type_c
    assert algorithm == -1
    assert (compute == 70) == (type_a == 1)
    dtype, number = (np.float64, ctypes.c_double) if type_a == 1 else (np.float32, ctypes.c_float)
    left = matrix(a, *((k, m) if of_a else (m, k)), lda, dtype)
    right = matrix(b, *((n, k) if of_b else (k, n)), ldb, dtype)
    into = matrix(c, m, n, ldc, dtype)
    factor, keep = number.from_address(alpha).value, number.from_address(beta).value
    for array in (left, right, into):
        RECORDER.streams.use(array, writes=array is into)

    def work() -> None:
        with np.errstate(all="ignore"):
            product = np.matmul(
                as_tensor_cores_see(left.T if of_a else left, compute),
                as_tensor_cores_see(right.T if of_b else right, compute),
            )
            result = factor * product.astype(dtype)
            into[...] = result if keep == 0.0 else result + keep * into
        COMPUTED.append(compute)

    RECORDER.write(work)


def library() -> Any:
    """What ctypes would load, with the argument types that the real one is called with."""
    errors: list[str] = []

    def create(where: Any) -> None:
        HANDLES.append(HANDLES[-1] + 1)
        where[0] = HANDLES[-1]
        assert RECORDER.tape is None, "a handle can't be made while a graph is recorded"
        STREAMS[HANDLES[-1]] = (None, None)

    def set_stream(handle: int, stream: int) -> None:
        STREAMS[handle] = (stream, None)  # it takes the workspace away

    def set_workspace(handle: int, address: int, size: int) -> None:
        assert len(RECORDER.memory(address, size)) == WORKSPACE_BYTES
        STREAMS[handle] = (STREAMS[handle][0], address)

    def reported(function: Any) -> Any:
        def call(*arguments: Any) -> int:
            try:
                function(*arguments)
            except BaseException as error:  # which can't pass through C
                errors.append(f"{type(error).__name__}: {error}")
                return 14
            return 0

        return call

    bodies = {
        "cublasCreate_v2": create,
        "cublasSetStream_v2": set_stream,
        "cublasSetWorkspace_v2": set_workspace,
        "cublasGemmEx": gemm,
    }
    assert list(bodies) == list(SIGNATURES)
    functions = {name: ctypes.CFUNCTYPE(c_int, *SIGNATURES[name])(reported(body)) for name, body in bodies.items()}
    return SimpleNamespace(**functions, cublasGetStatusString=lambda status: errors[-1].encode())
