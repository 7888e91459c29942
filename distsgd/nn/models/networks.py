"""The named convolutional networks, as their authors published them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from distsgd.core.device import Shape
from distsgd.core.errors import ConfigurationError
from distsgd.nn import layers as nn
from distsgd.nn.models.options import ModelBuilder, ModelOptions, as_images
from distsgd.nn.models.text import from_text

LENET = "lenet: conv 20 5x5, pool 2, tanh, conv 50 5x5, pool 2, tanh, dense 500, tanh, dense"
"""The network of Theano's tutorial "Convolutional neural networks (LeNet)", for images of 28x28. The tutorial adds its
biases after the pooling, where they make the same sums."""

NETWORK3 = "network3: conv 20 5x5, pool 2, sigmoid, conv 40 5x5, pool 2, sigmoid, dense 100, sigmoid, dense"
"""Two ConvPoolLayers, a FullyConnectedLayer and a SoftmaxLayer, with sigmoids; its other networks are lists, such as
"network3: dense 100, sigmoid, dense". Nielsen, "Neural networks and deep learning", Determination Press, 2015, chapter
6."""

LASAGNE = (
    "lasagne-cnn: conv 32 5x5, relu, pool 2, conv 32 5x5, relu, pool 2, "
    "dropout 0.5, dense 256, relu, dropout 0.5, dense"
)
"""The network `cnn` of Lasagne's examples/mnist.py."""


def resnet20(input_shape: Shape, outputs: int, options: ModelOptions) -> nn.Layer:
    """A convolution, three stages of three residual blocks with 16, 32 and 64 filters, the mean of each map, dense.

    He, Zhang, Ren & Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2: each block is 3x3
    convolution, batch normalization, ReLU, convolution, batch normalization, and a ReLU after the sum; the second and
    third stage begin with stride 2, and shortcuts have no parameters ("option A"), so that there are 0.27 million.
    Convolutions have no biases, which batch normalization would subtract again.
    """
    options.check_skipped("resnet20")
    shape = as_images(input_shape)
    if len(shape) != 3:
        raise ConfigurationError(f"resnet20: expected images of shape (channels, height, width), got {input_shape}")
    layers: dict[str, nn.Layer] = {
        "conv": _conv(shape[0], 16, 1, options),
        "batchnorm": nn.BatchNormalization(16),
        "relu": nn.Activation("relu"),
    }
    channels = 16
    for stage, filters in enumerate((16, 32, 64), start=1):
        for number in range(1, 4):
            layers[f"block{stage}{number}"] = _block(channels, filters, options)
            layers[f"relu{stage}{number}"] = nn.Activation("relu")
            channels = filters
    layers["pool"] = nn.GlobalAveragePooling()
    layers["dense"] = nn.Dense(channels, outputs, options.bias, options.weights("he"), options.biases)
    return nn.Sequential(layers.values(), layers)


def _conv(channels: int, filters: int, stride: int, options: ModelOptions) -> nn.Layer:
    weights = options.weights("he")
    return nn.Convolution(channels, filters, 3, stride, "same", bias=False, weight_initializer=weights)


def _block(channels: int, filters: int, options: ModelOptions) -> nn.Layer:
    """A residual block; one with more filters than channels halves height and width."""
    stride = 1 if channels == filters else 2
    body = [
        _conv(channels, filters, stride, options),
        nn.BatchNormalization(filters),
        nn.Activation("relu"),
        _conv(filters, filters, 1, options),
        nn.BatchNormalization(filters),
    ]
    return nn.Residual(nn.Sequential(body), None if stride == 1 else nn.Subsample(filters, stride))


NETWORKS: Mapping[str, ModelBuilder] = {
    "lenet": partial(from_text, LENET),
    "network3": partial(from_text, NETWORK3),
    "lasagne-cnn": partial(from_text, LASAGNE),
    "resnet20": resnet20,
}
