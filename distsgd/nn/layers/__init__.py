"""The layers that models are made of."""

from distsgd.core.lazy import lazily, names_in

NAMES: dict[str, tuple[str, ...]] = {
    "nn.layers.base": ("Backward", "DataLayer", "Layer", "StatefulLayer"),
    "nn.layers.dense": ("Dense", "Flatten"),
    "nn.layers.activation": ("ACTIVATIONS", "Activation"),
    "nn.layers.dropout": ("Dropout",),
    "nn.layers.sequential": ("Sequential",),
    "nn.layers.normalization": ("BatchNormalization",),
    "nn.layers.convolution": ("Convolution",),
    "nn.layers.pooling": ("AveragePooling", "GlobalAveragePooling", "MaxPooling"),
    "nn.layers.residual": ("Residual", "Subsample"),
}

__all__ = names_in(NAMES)
__getattr__, __dir__ = lazily(__name__, NAMES)
