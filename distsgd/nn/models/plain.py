"""The named models made of dense layers."""

from __future__ import annotations

from math import prod

from distsgd.core.device import Shape
from distsgd.nn.layers import Activation, BatchNormalization, Dense, Dropout, Layer, Sequential
from distsgd.nn.models.options import HE_ACTIVATIONS, ModelOptions


def softmax(input_shape: Shape, outputs: int, options: ModelOptions) -> Layer:
    """One dense layer: softmax regression, logistic regression or linear regression, as the loss has it."""
    fan_in = prod(input_shape)
    return Sequential([Dense(fan_in, outputs, options.bias, options.weights("zeros"), options.biases)])


def mlp(input_shape: Shape, outputs: int, options: ModelOptions) -> Layer:
    """Dense, [batch normalization,] activation[, dropout] for each hidden layer, then dense to the outputs.

    Examples are taken flat, as (product of input_shape,).
    """
    weights = options.weights("he" if options.activation in HE_ACTIVATIONS else "glorot")
    layers: list[Layer] = []
    fan_in = prod(input_shape)
    for units in options.hidden:
        layers.append(Dense(fan_in, units, options.bias, weights, options.biases))
        if options.batch_norm:
            layers.append(BatchNormalization(units))
        layers.append(Activation(options.activation))
        if options.dropout:
            layers.append(Dropout(options.dropout))
        fan_in = units
    layers.append(Dense(fan_in, outputs, options.bias, weights, options.biases))
    if options.output_activation != "linear":
        layers.append(Activation(options.output_activation))
    return Sequential(layers)
