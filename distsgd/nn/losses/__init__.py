"""The losses that training minimizes."""

from distsgd.core.lazy import Registry, lazily, names_in

NAMES: dict[str, tuple[str, ...]] = {
    "nn.losses.base": ("Loss",),
    "nn.losses.function": ("FunctionLoss", "loss_from"),
    "nn.losses.classification": ("SoftmaxCrossEntropy",),
    "nn.losses.binary": ("BinaryCrossEntropy",),
    "nn.losses.regression": ("AbsoluteError", "Huber", "Poisson", "SquaredError"),
    "nn.losses.distribution": ("Gaussian", "Quantile"),
    "nn.losses.focal": ("BinaryFocal", "Focal"),
}

LOSSES = Registry({
    "softmax-cross-entropy": "nn.losses.classification:SoftmaxCrossEntropy",
    "binary-cross-entropy": "nn.losses.binary:BinaryCrossEntropy",
    "squared-error": "nn.losses.regression:SquaredError",
    "l1": "nn.losses.regression:AbsoluteError",
    "huber": "nn.losses.regression:Huber",
    "poisson": "nn.losses.regression:Poisson",
    "gaussian": "nn.losses.distribution:Gaussian",
    "quantile": "nn.losses.distribution:Quantile",
    "focal": "nn.losses.focal:Focal",
    "binary-focal": "nn.losses.focal:BinaryFocal",
})  # fmt: skip
"""The classes that have names, each imported when it is looked up."""

__all__ = [*names_in(NAMES), "LOSSES"]
__getattr__, __dir__ = lazily(__name__, NAMES)
