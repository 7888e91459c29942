"""Examples and how they are drawn: sampling, augmentation, loading and sources."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distsgd.data.sources.datasets import (
        ArraySource,
        DataSource,
        OpenOptions,
        load_mnist,
        make_moons,
        open_dataset,
        read_array,
    )
else:

    def __getattr__(name):
        """The names of the data sets are imported when they are first used: arrays in memory need none of them."""
        from distsgd.data.sources import datasets

        if name not in __all__:
            raise AttributeError(f"module 'distsgd.data' has no attribute {name!r}")
        return getattr(datasets, name)


__all__ = ["ArraySource", "DataSource", "OpenOptions", "load_mnist", "make_moons", "open_dataset", "read_array"]
