"""What CuPy raises, known by its words and its names, where there is no CuPy."""

from __future__ import annotations

import pytest

from distsgd.core.errors import MIXED_ADVICE, DistsgdError, OutOfMemoryError, UserCodeError, users_code
from tests.strict_arrays import OutOfMemoryError as OnTheGpu

CUDA = type("CUDARuntimeError", (RuntimeError,), {})
ADVICE = "use a smaller minibatch or model, more microbatches"


def reported(error: Exception) -> DistsgdError:
    with pytest.raises(DistsgdError) as found, users_code("here"):
        raise error
    return found.value


@pytest.mark.parametrize(
    ("error", "mixed"),
    [
        (TypeError("Unsupported type <class 'numpy.ndarray'>"), True),
        (
            TypeError("Argument 'a' has incorrect type (expected cupy._core.core._ndarray_base, got numpy.ndarray)"),
            True,
        ),
        (TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`"), True),
        (TypeError("unsupported operand type(s) for +: 'numpy.ndarray' and 'str'"), False),
        (TypeError("'numpy.ndarray' object is not callable"), False),
        (ValueError("Unsupported type <class 'numpy.ndarray'>"), False),
    ],
)
def test_mixed_arrays(error: Exception, mixed: bool) -> None:
    found = reported(error)
    assert type(found) is UserCodeError
    assert str(found).endswith(MIXED_ADVICE) == mixed
    assert str(error) in str(found)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OnTheGpu("Out of memory allocating 9 bytes."),
            "here: the GPU is out of memory (Out of memory allocating",
        ),
        (
            CUDA("cudaErrorMemoryAllocation: out of memory"),
            "here: the GPU is out of memory (cudaErrorMemory",
        ),
        (
            MemoryError("Unable to allocate 3 GiB"),
            "here: out of memory (Unable to allocate 3 GiB); use fewer",
        ),
    ],
)
def test_lack_of_memory(error: Exception, sentence: str) -> None:
    found = reported(error)
    assert type(found) is OutOfMemoryError
    assert str(found).startswith(sentence)
    assert "\n" not in str(found)
    assert (ADVICE in str(found)) == ("GPU" in sentence)


def test_other_errors_of_cuda_are_what_they_are() -> None:
    assert type(reported(CUDA("cudaErrorIllegalAddress: an illegal address was encountered"))) is UserCodeError
