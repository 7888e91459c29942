"""Training images moved and mirrored at random: a pure function of (seed, epoch, example), on whatever rank.

A moved image is a run of the flat pixels that begins elsewhere. One copy per batch takes all runs, and a mask puts
zeros where a run contains pixels of another row, channel or image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import ConfigurationError
from distsgd.core.random import random_words
from distsgd.data.sampling import ORDER_BY_SORT

ONE_PIXEL = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
"""(down, right) of an image as it is and moved by one pixel up, down, left and right: Nielsen's expanded MNIST."""

_BLOCK = 1 << 18
"""Bytes of images that are moved at once: they and their copies stay in the cache."""

_OFFSET_BITS = 31
"""Random bits of one offset, which comes out even to 2**-31 times the number of offsets."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to each image of a training batch, with one random word.

    Parameters
    ----------
    reach
        Images are moved by -reach … reach pixels down and to the right, each offset equally likely, filled with zeros.
    mirror
        Whether left and right are exchanged with probability 1/2.
    keyed
        Whether the word of an example is computed from its index alone, without those of all examples; so it is where
        there are many.
    """

    reach: int = 0
    mirror: bool = False
    keyed: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """Its canonical form, with which a configuration is stored."""
        return (*([f"shift {self.reach}"] if self.reach else []), *(["flip"] if self.mirror else []))

    def check(self, shape: Shape) -> None:
        """Raises ConfigurationError where examples of this shape aren't images, or are smaller than the shift."""
        check_images(f"augment {', '.join(self.words)}", shape, self.reach)

    def random_words(self, count: int, seed: int, epoch: int, indices: Array) -> Array:
        """The words of these of `count` examples in this epoch."""
        if self.keyed or count >= ORDER_BY_SORT:
            return keyed_words(indices, seed, epoch)
        words: Array = example_words(count, seed, epoch)[indices]
        return words

    def apply(self, images: Array, words: Array) -> None:
        """In place, changes C-ordered images (n, …, height, width) by the random words (n,) uint64."""
        if self.reach:
            down, right = (self._offsets(words >> np.uint64(bits)) for bits in (0, _OFFSET_BITS))
            move(images, down, right, self.reach)
        if self.mirror:
            chosen = np.flatnonzero(words >> np.uint64(2 * _OFFSET_BITS + 1))
            images[chosen] = images[chosen][..., ::-1]

    def _offsets(self, words: Array) -> Array:
        """Offsets from -reach to reach, from the lowest bits of each word."""
        bits = words & np.uint64((1 << _OFFSET_BITS) - 1)
        return (bits * np.uint64(2 * self.reach + 1) >> np.uint64(_OFFSET_BITS)).astype(np.int64) - self.reach


def parse_augmentation(words: Sequence[str]) -> Augmentation | None:
    """The augmentation of a text such as `crop 4, flip`, in any order and however it is split; None for no text.

    Raises ConfigurationError with one sentence.
    """
    text = " ".join(" ".join(words).replace(",", " ").split())
    if not text:
        return None
    found = re.findall(r"(?:(?:shift|crop) \d{1,9}|flip)(?= |$)", text)
    if " ".join(found) != text:
        raise ConfigurationError(f"augment: expected shift N, crop N and flip, such as crop 4 flip, got {text!r}")
    amounts = [int(part.split()[1]) for part in found if part != "flip"]
    if len(amounts) > 1 or found.count("flip") > 1:
        raise ConfigurationError(
            f"augment: expected each word once, and one of shift and crop, which mean the same, got {text!r}"
        )
    if 0 in amounts:
        raise ConfigurationError(f"augment: expected at least 1 pixel to shift or crop by, got {text!r}; remove it")
    return Augmentation(amounts[0] if amounts else 0, "flip" in found)


def check_images(option: str, shape: Shape, reach: int) -> None:
    """Raises ConfigurationError, in the name of `option`, where examples of this shape aren't images that can be moved
    by `reach` pixels."""
    if len(shape) not in (2, 3):
        raise ConfigurationError(
            f"{option}: expected images, (height, width) or (channels, height, width), got examples of shape {shape}; "
            "reshape them, or remove the option"
        )
    if reach >= min(shape[-2:]):
        raise ConfigurationError(
            f"{option}: expected to move an image by fewer pixels than it has, got {reach} for {shape[-2]}×{shape[-1]}"
        )


@lru_cache(maxsize=1)
def example_words(count: int, seed: int, epoch: int) -> Array:
    """One random word for each of `count` examples in this epoch; word i doesn't depend on `count`. Read only.

    All of an epoch's are made at once, 3 ns each, and kept: Philox is slow to start and fast to continue.
    """
    words = random_words(count, seed, "augmentation", epoch)
    words.flags.writeable = False
    return words


def keyed_words(indices: Array, seed: int, epoch: int) -> Array:
    """One random word for each of these examples in this epoch: splitmix64's, at the places that the indices name."""
    key = random_words(1, seed, "augmentation, keyed", epoch)
    words = indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = words ^ (words >> np.uint64(31))
    return mixed


def move(images: Array, down: Array, right: Array, reach: int) -> None:
    """In place, moves image i of C-ordered (n, …, height, width) by (down[i], right[i]) pixels; zeros come in.

    reach   the largest offset there is, less than height and width
    """
    height, width = images.shape[-2:]
    count, pixels = len(images), prod(images.shape[1:])
    bits, item = np.dtype(f"u{images.itemsize}"), images.itemsize
    rows, columns = _masks(height, width, reach, bits.str)
    flat = images.reshape(count, pixels).view(bits)
    step = max(1, min(count, _BLOCK // (pixels * item)))
    # One more image at both ends, with any content: runs reach into it, and the mask clears those pixels.
    buffer = np.empty((step + 2, pixels), bits)
    runs = np.ndarray(((step + 1) * pixels + 1, pixels), bits, buffer, strides=(item, item))
    for start in range(0, count, step):
        part = slice(start, start + step)
        block, below, beside = flat[part], down[part], right[part]
        buffer[1 : len(block) + 1] = block
        block[...] = runs[np.arange(1, len(block) + 1) * pixels - (below * width + beside)]
        mask = rows.take(below + reach, axis=0)
        mask &= columns.take(beside + reach, axis=0)
        by_channel = block.reshape(len(block), -1, height * width)
        by_channel &= mask[:, np.newaxis]


@lru_cache(maxsize=8)
def _masks(height: int, width: int, reach: int, dtype: str) -> tuple[Array, Array]:
    """Of each offset, -reach first, the pixels (height · width) whose row, and whose column, comes from the image.

    As bits, all or none: and with them gives +0 for any number, -1 and NaN too.
    """
    offsets = np.arange(-reach, reach + 1)[:, np.newaxis]
    ones = np.array(np.iinfo(dtype).max, dtype)
    row, column = (np.arange(length) - offsets for length in (height, width))
    rows = np.repeat((row >= 0) & (row < height), width, axis=1) * ones
    columns = np.tile((column >= 0) & (column < width), (1, height)) * ones
    return rows, columns
