"""The names of distsgd.data; made by python -m tests.generated_faces."""

from distsgd.data.sources.base import ArraySource as ArraySource
from distsgd.data.sources.base import DataSource as DataSource
from distsgd.data.sources.base import OpenOptions as OpenOptions
from distsgd.data.sources.base import read_array as read_array
from distsgd.data.sources.datasets import check_arrays as check_arrays
from distsgd.data.sources.datasets import load_mnist as load_mnist
from distsgd.data.sources.datasets import make_moons as make_moons
from distsgd.data.sources.datasets import open_dataset as open_dataset
