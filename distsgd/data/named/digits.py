"""Handwritten digits, 8x8, small enough to come with the package: a first run needs no network.

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits. UCI Machine Learning Repository, 1998. DOI
10.24432/C50P49. CC BY 4.0
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distsgd.data.sources.arrays.npy import open_npz
from distsgd.data.sources.assemble import assemble
from distsgd.data.sources.base import DataSource, OpenOptions


def open_digits(options: OpenOptions) -> DataSource:
    """1,797 images (8, 8) of values 0 to 16, ten classes: the test part of the UCI set, as scikit-learn has it."""
    arrays = open_npz(Path(__file__).with_name("digits.npz"), ("x", "y"))
    return replace(assemble("digits", arrays), scale=16.0, num_classes=10)
