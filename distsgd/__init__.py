"""distsgd: data-parallel SGD over MPI whose result does not depend on how many processes computed it.

Public names are imported when they are first used, so that `import distsgd` stays cheap on a thousand ranks.
"""

from distsgd.core.lazy import lazily, names_in
from distsgd.core.version import __version__ as __version__

NAMES: dict[str, tuple[str, ...]] = {
    "run.fit": ("fit",),
    "run.trained.trained_model": ("Result", "TrainedModel"),
    "run.trained.load": ("load",),
    "run.trained.ensemble": ("Ensemble",),
    "run.own_loop.data_parallel": ("DataParallel",),
    "parallel": ("is_root", "rank", "size"),
    "training.callbacks": ("Callback", "RunView"),
    "optim.optimizers": ("SGD", "Adagrad", "Adam", "AdamW", "Momentum", "Nesterov", "RMSprop"),
    "optim.layerwise": ("LAMB", "LARS"),
    "optim.registry": ("linear_scaling",),
    "optim.schedules": ("build_schedule",),
    "nn.layers": (
        "Activation", "AveragePooling", "Backward", "BatchNormalization", "Convolution", "Dense", "Dropout", "Flatten",
        "GlobalAveragePooling", "Layer", "MaxPooling", "Residual", "Sequential", "StatefulLayer", "Subsample",
    ),
    "nn.losses.base": ("Loss",),
    "nn.losses.classification": ("SoftmaxCrossEntropy",),
    "nn.losses.binary": ("BinaryCrossEntropy",),
    "nn.losses.regression": ("SquaredError",),
    "nn.initializers": ("Constant", "Glorot", "He", "LeCun", "Normal", "Uniform", "Zeros"),
    "nn.function_objective": ("FunctionObjective",),
    "nn.objective": ("LossAndGrad", "Objective"),
    "nn.batch": ("Batch",),
    "nn.task": ("Task",),
    "core.layout": ("Layout", "Views"),
    "core.device": ("Array", "Shape"),
    "core.errors": (
        "CheckpointError", "ConfigurationError", "DataError", "DistsgdError", "Interrupted", "LauncherError",
        "NonFiniteError", "OutOfMemoryError", "OutputError", "ReplicaError", "RunFolderError", "UnknownNameError",
        "UserCodeError",
    ),
    "data.named.datasets": ("open_dataset",),
    "data.named.mnist": ("load_mnist",),
    "core.random": (),
    "data": (), "metrics": (), "nn": (), "optim": (), "testing": (),
}  # fmt: skip

__all__ = ["__version__", *names_in(NAMES)]
__getattr__, __dir__ = lazily(__name__, NAMES)
