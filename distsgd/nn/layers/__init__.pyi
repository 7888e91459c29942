"""The names of distsgd.nn.layers; made by python -m tests.generated_faces."""

from distsgd.nn.layers.activation import ACTIVATIONS as ACTIVATIONS
from distsgd.nn.layers.activation import Activation as Activation
from distsgd.nn.layers.base import Backward as Backward
from distsgd.nn.layers.base import DataLayer as DataLayer
from distsgd.nn.layers.base import Layer as Layer
from distsgd.nn.layers.base import StatefulLayer as StatefulLayer
from distsgd.nn.layers.convolution import Convolution as Convolution
from distsgd.nn.layers.dense import Dense as Dense
from distsgd.nn.layers.dense import Flatten as Flatten
from distsgd.nn.layers.dropout import Dropout as Dropout
from distsgd.nn.layers.normalization import BatchNormalization as BatchNormalization
from distsgd.nn.layers.pooling import AveragePooling as AveragePooling
from distsgd.nn.layers.pooling import GlobalAveragePooling as GlobalAveragePooling
from distsgd.nn.layers.pooling import MaxPooling as MaxPooling
from distsgd.nn.layers.residual import Residual as Residual
from distsgd.nn.layers.residual import Subsample as Subsample
from distsgd.nn.layers.sequential import Sequential as Sequential
