"""The names of distsgd.metrics; made by python -m tests.generated_faces."""

from distsgd.nn.task import predicted_classes as predicted_classes
from distsgd.nn.task import true_classes as true_classes
from distsgd.training.metrics import R2 as R2
from distsgd.training.metrics import Accuracy as Accuracy
from distsgd.training.metrics import ConfusionMatrix as ConfusionMatrix
from distsgd.training.metrics import Error as Error
from distsgd.training.metrics import LabelAccuracy as LabelAccuracy
from distsgd.training.metrics import MeanAbsoluteError as MeanAbsoluteError
from distsgd.training.metrics import MeanSquaredError as MeanSquaredError
from distsgd.training.metrics import Metric as Metric
from distsgd.training.metrics import Mode as Mode
from distsgd.training.metrics import TopK as TopK
from distsgd.training.metrics import UserMetric as UserMetric
from distsgd.training.metrics import Value as Value
