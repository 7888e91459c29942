"""The estimators with models of PyTorch and JAX, which stay as they are."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is missing: make test-integrations installs it")

import joblib
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, make_multilabel_classification
from sklearn.model_selection import cross_val_predict

from distsgd.integrations.sklearn import DistributedClassifier, DistributedRegressor

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.* a StandardScaler.*:UserWarning"),
]

X, LABELS = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[LABELS]
MISSING = "is missing: make test-integrations installs it"


def test_a_torch_model_is_copied_continued_and_pickled() -> None:
    torch = pytest.importorskip("torch", reason=f"PyTorch {MISSING}")
    from distsgd.integrations.torch import TorchModel

    torch.manual_seed(0)
    layers = torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    module = torch.nn.Sequential(*layers)
    before = {name: array.clone() for name, array in module.state_dict().items()}
    classifier = clone(DistributedClassifier(TorchModel(module, torch.nn.CrossEntropyLoss()), warm_start=True))
    classifier.set_params(learning_rate=0.02, max_iter=60).fit(X, NAMES)
    assert classifier.score(X, NAMES) > 0.9
    assert all(torch.equal(array, before[name]) for name, array in module.state_dict().items())
    again = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(again.predict_proba(X), classifier.predict_proba(X))
    again.set_params(learning_rate=1e-9, max_iter=1).fit(X, NAMES)
    np.testing.assert_allclose(again.predict_proba(X), classifier.predict_proba(X), atol=0.1)


def test_threads_train_models_of_torch_one_after_the_other() -> None:
    """Their random numbers, for initial values and dropout, are the whole process's."""
    torch = pytest.importorskip("torch", reason=f"PyTorch {MISSING}")
    from distsgd.integrations.torch import TorchModel

    def network(example_shape: tuple[int, ...], outputs: int) -> TorchModel:
        torch.manual_seed(0)
        layers = torch.nn.Linear(*example_shape, 8), torch.nn.Dropout(), torch.nn.Linear(8, outputs)
        return TorchModel(torch.nn.Sequential(*layers), torch.nn.CrossEntropyLoss())

    def scores(n_jobs: int) -> Any:
        with joblib.parallel_config("threading"):
            model = DistributedClassifier(network, learning_rate=0.05, max_iter=10)
            return cross_val_predict(model, X, NAMES, cv=4, n_jobs=n_jobs, method="predict_proba")

    np.testing.assert_array_equal(scores(4), scores(1))


def test_torch_models_that_a_function_builds() -> None:
    torch = pytest.importorskip("torch", reason=f"PyTorch {MISSING}")
    from distsgd.integrations.torch import TorchModel

    def linear(example_shape: tuple[int, ...], outputs: int) -> TorchModel:
        torch.manual_seed(0)
        return TorchModel(torch.nn.Linear(*example_shape, outputs), torch.nn.BCEWithLogitsLoss())

    x, y = make_multilabel_classification(200, n_classes=3, random_state=0)
    classifier = DistributedClassifier(linear, learning_rate=0.05, max_iter=60).fit(x, y)
    assert (classifier.predict(x) == y).mean() > 0.8
    np.testing.assert_array_equal(classifier.predict(x), classifier.predict_proba(x) > 0.5)

    def tokens(example_shape: tuple[int, ...], outputs: int) -> TorchModel:
        torch.manual_seed(0)
        layers = torch.nn.Embedding(20, 8), torch.nn.Flatten(), torch.nn.Linear(8 * example_shape[0], outputs)
        return TorchModel(torch.nn.Sequential(*layers), torch.nn.CrossEntropyLoss())

    words = np.random.default_rng(0).integers(0, 20, (100, 6))
    first = (words[:, 0] > 9).astype(int)
    assert DistributedClassifier(tokens, learning_rate=0.02, max_iter=30).fit(words, first).score(words, first) > 0.9


def test_a_jax_model_is_copied_and_continued() -> None:
    pytest.importorskip("jax", reason=f"JAX {MISSING}")
    from distsgd.integrations.jax import JaxModel

    x, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    params = {"w": np.zeros((10, 1), np.float32), "b": np.zeros(1, np.float32)}

    def linear(params: Any, x: Any) -> Any:
        return (x @ params["w"] + params["b"])[:, 0]

    model = JaxModel(linear, params, lambda outputs, y: (outputs - y) ** 2)
    regressor = clone(DistributedRegressor(model, learning_rate=0.05, max_iter=50, warm_start=True))
    first = regressor.fit(x, y).score(x, y)
    assert first > 0.2
    assert regressor.fit(x, y).score(x, y) > first
    assert regressor.predict(x).shape == (442,)
    assert not params["w"].any()
    assert not model.params["w"].any()
