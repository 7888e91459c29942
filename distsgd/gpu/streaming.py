"""Copies of minibatches from the host to a GPU, while the GPU computes on the previous one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from distsgd.core.device import CPU, Array, Device, Shape
from distsgd.data.loader import GatheredBatch, Loader

PLACES = 2
"""Buffers on the host and on the GPU: one is filled while the other is read."""


class Stream:
    """Gathers minibatches into pinned memory, and copies them to the GPU on a stream of their own.

    longest   the most examples of a minibatch
    """

    def __init__(self, device: Device, loader: Loader, longest: int) -> None:
        self._device, self._on_host = device, replace(loader, device=CPU)
        cuda, examples = device.xp.cuda, loader.examples
        self._copies = cuda.Stream(non_blocking=True)
        self._arrived, self._read = ([cuda.Event(disable_timing=True) for _ in range(PLACES)] for _ in range(2))
        features = int(np.prod(examples.x.shape[1:]))
        buffers: list[tuple[Shape, np.dtype[Any]]] = [((longest, features), loader.dtype)]
        buffers.append(((longest, *examples.y.shape[1:]), examples.y.dtype))
        if examples.weights is not None:
            buffers.append(((longest,), loader.dtype))
        self._here = [[device.host_buffer(shape, dtype) for shape, dtype in buffers] for _ in range(PLACES)]
        self._there = [[device.xp.zeros(shape, dtype) for shape, dtype in buffers] for _ in range(PLACES)]
        self._place = PLACES - 1
        for place in range(PLACES):
            self._arrived[place].record(self._copies)
            self.used(place)

    def send(self, indices: Array, epoch: int) -> int:
        """Copy the training examples with these indices; returns the buffer's index, for `rows`.

        Work that is launched afterwards on the current stream waits until they have arrived.
        """
        self._place = place = (self._place + 1) % PLACES
        here, there, count = self._here[place], self._there[place], len(indices)
        self._arrived[place].synchronize()  # waits for the last copy from this buffer
        rows = self._on_host.gather(indices, epoch, here[0])
        for buffer, array in zip(here, (rows.x, rows.y, rows.weights), strict=False):
            if array is not None and not np.shares_memory(buffer, array):
                buffer[:count] = array
        self._copies.wait_event(self._read[place])
        for target, buffer in zip(there, here, strict=True):
            target[:count].set(buffer[:count], stream=self._copies)
        self._arrived[place].record(self._copies)
        self._device.xp.cuda.get_current_stream().wait_event(self._arrived[place])
        return place

    def rows(self, place: int, count: int) -> GatheredBatch:
        """The first `count` examples of a buffer on the GPU."""
        x, y, *weights = (array[:count] for array in self._there[place])
        return GatheredBatch(x, y, weights[0] if weights else None, np.zeros(count, np.int64))

    def used(self, place: int) -> None:
        """Note that all work that reads the buffer has been launched."""
        self._read[place].record(self._device.xp.cuda.get_current_stream())
