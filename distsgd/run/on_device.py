"""Puts a data set into a device's memory, where there is enough of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from distsgd.core.device import Array, Device
from distsgd.data.examples import Examples
from distsgd.data.targets import blocks
from distsgd.parallel import Communicator
from distsgd.run.data.loading import Data


def on_device(communicator: Communicator, data: Data, device: Device, *, augmented: bool) -> Data:
    """The data set on the device, each array once, where all of it takes up to half of the free memory. Collective.

    On all ranks or on none, for they record the same graphs. Elsewhere minibatches are gathered on the host and sent;
    so are those of training images that are moved or mirrored, which the CPU does.
    """
    free = device.free_bytes()
    if free is None:
        return data
    sets = [part for part in (data.train, data.validation, data.test) if part is not None]
    arrays = {id(array): array for part in sets for array in (part.x, part.y, part.weights) if array is not None}
    place = (communicator.hosts[communicator.rank], device.bus)
    everyone = communicator.allgather_object((free, place))
    shares = Counter(where for _, where in everyone)
    if any(sum(array.nbytes for array in arrays.values()) > free // 2 // shares[where] for free, where in everyone):
        return data
    return communicator.everywhere(lambda: _copied(data, device, augmented))


def _copied(data: Data, device: Device, augmented: bool) -> Data:
    copies: dict[int, Array] = {}

    def put(array: Array) -> Array:
        if id(array) not in copies:
            copies[id(array)] = device.put(array)
        return copies[id(array)]

    def moved(part: Examples | None) -> Examples | None:
        if part is None or len(part.shifts) > 1:
            return part
        if part.check is not None:
            for start, block in blocks(part.x):
                part.check(block, np.arange(start, start + len(block)))
        weights = None if part.weights is None else put(part.weights)
        return replace(part, x=put(part.x), y=put(part.y), weights=weights, check=None)

    train = data.train if augmented else moved(data.train)
    assert train is not None
    return replace(data, train=train, validation=moved(data.validation), test=moved(data.test))
