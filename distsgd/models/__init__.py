"""The named models: from a few options to layers."""

from __future__ import annotations

from collections.abc import Mapping

from distsgd.models.describe import describe
from distsgd.models.options import ModelBuilder, ModelOptions
from distsgd.models.plain import mlp, softmax
from distsgd.models.shapes import accepted_shape

MODELS: Mapping[str, ModelBuilder] = {"softmax": softmax, "mlp": mlp}

__all__ = ["MODELS", "ModelBuilder", "ModelOptions", "accepted_shape", "describe"]
