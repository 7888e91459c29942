"""Examples and how they are drawn: sampling, augmentation, loading and sources."""

from distsgd.data.sources import ArraySource, DataSource, OpenOptions, load_mnist, make_moons, open_dataset, read_array

__all__ = ["ArraySource", "DataSource", "OpenOptions", "load_mnist", "make_moons", "open_dataset", "read_array"]
