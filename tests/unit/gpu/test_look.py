"""What the check of a GPU machine looks at first: versions, and each self check in each precision."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.children import gpu_look
from benchmarks.gpu_findings import look_lines
from distsgd.core.device_options import PRECISIONS
from distsgd.core.errors import ConfigurationError
from distsgd.gpu import cublas
from distsgd.gpu.self_check import CHECKS
from tests import emulated_kernels
from tests.strict_device import StrictModule, strict_device

pytestmark = [
    pytest.mark.stand_in,
    pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT),
]


@pytest.fixture
def module() -> Iterator[StrictModule]:
    made = StrictModule()
    with strict_device(made, own_kernels=True):
        yield made


def test_a_gpu_that_is_right(module: StrictModule) -> None:
    found = gpu_look.look("gpu")
    assert found["right"]
    assert [(one["precision"], one["what"]) for one in found["checks"]] == [(p, c) for p in PRECISIONS for c in CHECKS]
    assert all(one["right"] and one["error"] is None for one in found["checks"])
    lines = look_lines(found)
    assert lines[0] == "Strict (gpu:0)"
    # A version that a library doesn't tell is no failure.
    assert "NVRTC 13.0, NCCL NCCL isn't installed" in lines[1]
    assert "CuPy unknown (AttributeError)" in lines[1]
    assert "memory 1.1 GB free of 2.1" in lines[2]
    assert [line.split(":")[0] for line in lines[3:7]] == list(PRECISIONS)
    with pytest.raises(ConfigurationError, match="device gpu:3: this host has gpu:0 alone"):
        gpu_look.look("gpu:3")


def test_a_gpu_that_multiplies_wrongly(module: StrictModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cublas.COMPUTE, "float32", cublas.COMPUTE["tf32"])
    found = gpu_look.look("gpu")
    assert not found["right"]
    wrong = [(one["precision"], one["what"]) for one in found["checks"] if not one["right"]]
    assert wrong == [("float32", "a product")]
    assert any(
        line.startswith("float32: an update right ") and "a product WRONG " in line for line in look_lines(found)
    )


def test_an_error_of_a_precision_is_told_beside_the_others(
    module: StrictModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(cublas.COMPUTE, "bfloat16")  # type: ignore[arg-type]
    found = gpu_look.look("gpu")
    wrong = [one for one in found["checks"] if not one["right"]]
    assert [one["precision"] for one in wrong] == ["bfloat16"]
    assert found["right"]  # distsgd computes in float32 there
    assert "  a product: KeyError: 'bfloat16'" in look_lines(found)
