"""The named models made of dense layers."""

from __future__ import annotations

from math import prod

from distsgd.core.device import Shape
from distsgd.nn import layers as nn
from distsgd.nn.models.options import HE_ACTIVATIONS, ModelOptions


def softmax(input_shape: Shape, outputs: int, options: ModelOptions) -> nn.Layer:
    """One dense layer: softmax regression, logistic regression or linear regression, as the loss has it."""
    fan_in = prod(input_shape)
    return nn.Sequential([nn.Dense(fan_in, outputs, options.bias, options.weights("zeros"), options.biases)])


def mlp(input_shape: Shape, outputs: int, options: ModelOptions) -> nn.Layer:
    """Dense, [batch normalization,] activation[, dropout] for each hidden layer, then dense to the outputs.

    Examples are taken flat, as (product of input_shape,).
    """
    weights = options.weights("he" if options.activation in HE_ACTIVATIONS else "glorot")
    layers: list[nn.Layer] = []
    fan_in = prod(input_shape)
    for units in options.hidden:
        layers.append(nn.Dense(fan_in, units, options.bias, weights, options.biases))
        if options.batch_norm:
            layers.append(nn.BatchNormalization(units))
        layers.append(nn.Activation(options.activation))
        if options.dropout:
            layers.append(nn.Dropout(options.dropout))
        fan_in = units
    layers.append(nn.Dense(fan_in, outputs, options.bias, weights, options.biases))
    if options.output_activation != "linear":
        layers.append(nn.Activation(options.output_activation))
    return nn.Sequential(layers)
