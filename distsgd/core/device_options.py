"""What `--device` and `--precision` are, declared once for all commands that compute. Loads no NumPy."""

from __future__ import annotations

from typing import Any

from distsgd.core.options import option

FULL = "float32"
PRECISIONS = (FULL, "tf32", "bfloat16", "float16")
"""What a device may round numbers of float32 to as it multiplies matrices; it adds in float32 always."""


def device_option(default: str, **settings: Any) -> Any:
    """The field `device` of a command's options."""
    return option(
        default,
        "cpu; gpu: one a rank, in turn; gpu:N: that one; auto: a GPU where CuPy finds one, else the CPU.",
        **settings,
    )


def precision_option(**settings: Any) -> Any:
    """The field `precision` of a command's options."""
    return option(
        FULL,
        "What a GPU rounds numbers to as it multiplies matrices; parameters, gradients and sums stay float32.",
        choices=PRECISIONS,
        **settings,
    )
