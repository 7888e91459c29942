"""Models: layers, losses, initializers and the objective that training minimizes."""

from distsgd.core.lazy import lazily, names_in

NAMES: dict[str, tuple[str, ...]] = {
    "nn.layers": (
        "Activation", "AveragePooling", "Backward", "BatchNormalization", "Convolution", "DataLayer", "Dense",
        "Dropout", "Flatten", "GlobalAveragePooling", "Layer", "MaxPooling", "Residual", "Sequential", "StatefulLayer",
        "Subsample",
    ),
    "nn.losses.base": ("Loss",),
    "nn.losses.function": ("loss_from",),
    "nn.losses.classification": ("SoftmaxCrossEntropy",),
    "nn.losses.binary": ("BinaryCrossEntropy",),
    "nn.losses.regression": ("AbsoluteError", "Huber", "Poisson", "SquaredError"),
    "nn.losses.distribution": ("Gaussian", "Quantile"),
    "nn.losses.focal": ("BinaryFocal", "Focal"),
    "nn.initializers": ("Constant", "Glorot", "He", "Initializer", "LeCun", "Normal", "Uniform", "Zeros"),
    "nn.function_objective": ("FunctionObjective",),
    "nn.objective": ("LossAndGrad", "Objective", "Supervised"),
    "nn.batch": ("Batch",),
    "core.layout": ("Layout", "Views"),
    "core.device": ("Array", "Shape", "array_module"),
    "core.kernels": ("kernels_for",),
}  # fmt: skip

__all__ = names_in(NAMES)
__getattr__, __dir__ = lazily(__name__, NAMES)
