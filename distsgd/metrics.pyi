"""The names of distsgd.metrics; made by python -m tests.generated_faces."""

from distsgd.nn.task import predicted_classes as predicted_classes
from distsgd.nn.task import true_classes as true_classes
from distsgd.training.metrics.base import GatheringMetric as GatheringMetric
from distsgd.training.metrics.base import Metric as Metric
from distsgd.training.metrics.base import Mode as Mode
from distsgd.training.metrics.base import UserMetric as UserMetric
from distsgd.training.metrics.base import Value as Value
from distsgd.training.metrics.base import per_set as per_set
from distsgd.training.metrics.classes import Accuracy as Accuracy
from distsgd.training.metrics.classes import ConfusionMatrix as ConfusionMatrix
from distsgd.training.metrics.classes import Error as Error
from distsgd.training.metrics.classes import LabelAccuracy as LabelAccuracy
from distsgd.training.metrics.classes import TopK as TopK
from distsgd.training.metrics.counts import F1 as F1
from distsgd.training.metrics.counts import BalancedAccuracy as BalancedAccuracy
from distsgd.training.metrics.counts import Matthews as Matthews
from distsgd.training.metrics.counts import Precision as Precision
from distsgd.training.metrics.counts import Recall as Recall
from distsgd.training.metrics.ranking import AveragePrecision as AveragePrecision
from distsgd.training.metrics.ranking import RocAuc as RocAuc
from distsgd.training.metrics.regression import R2 as R2
from distsgd.training.metrics.regression import MeanAbsoluteError as MeanAbsoluteError
from distsgd.training.metrics.regression import MeanSquaredError as MeanSquaredError
from distsgd.training.metrics.regression import MedianAbsoluteError as MedianAbsoluteError
from distsgd.training.metrics.regression import RootMeanSquaredError as RootMeanSquaredError
