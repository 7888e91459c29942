"""The names of distsgd.data; made by python -m tests.generated_faces."""

from distsgd.data.checks import check_arrays as check_arrays
from distsgd.data.named.datasets import open_dataset as open_dataset
from distsgd.data.named.generated import make_moons as make_moons
from distsgd.data.named.mnist import load_mnist as load_mnist
from distsgd.data.sources.base import ArraySource as ArraySource
from distsgd.data.sources.base import DataSource as DataSource
from distsgd.data.sources.base import OpenOptions as OpenOptions
from distsgd.data.sources.base import read_array as read_array
