"""Examples and how they are drawn: sampling, augmentation, loading, named sets and file formats."""

from distsgd.core.lazy import lazily, names_in

NAMES: dict[str, tuple[str, ...]] = {
    "data.checks": ("check_arrays",),
    "data.named.datasets": ("open_dataset",),
    "data.named.generated": ("make_moons",),
    "data.named.mnist": ("load_mnist",),
    "data.sources.base": ("ArraySource", "DataSource", "OpenOptions", "read_array"),
}

__all__ = names_in(NAMES)
__getattr__, __dir__ = lazily(__name__, NAMES)
