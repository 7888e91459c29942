"""Examples and how they are drawn: sampling, augmentation, loading and sources."""

from typing import TYPE_CHECKING

from distsgd.core.lazy import lazily

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
__all__ = ["ArraySource", "DataSource", "OpenOptions", "load_mnist", "make_moons", "open_dataset", "read_array"]

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, __all__, ["distsgd.data.sources.datasets"])
