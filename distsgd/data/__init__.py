"""Examples and how they are drawn: sampling, augmentation, loading and sources."""

from distsgd.core.lazy import lazily, names_in

NAMES: dict[str, tuple[str, ...]] = {
    "data.sources.datasets": ("check_arrays", "load_mnist", "make_moons", "open_dataset"),
    "data.sources.base": ("ArraySource", "DataSource", "OpenOptions", "read_array"),
}

__all__ = names_in(NAMES)
__getattr__, __dir__ = lazily(__name__, NAMES)
