"""DistributedClassifier and DistributedRegressor as scikit-learn's own: its checks, its tools, its parameters."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is missing: make test-integrations installs it")

from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, make_multilabel_classification
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import distsgd
from distsgd import nn
from distsgd.integrations.sklearn import DistributedClassifier, DistributedRegressor

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.* a StandardScaler.*:UserWarning"),
]

X, LABELS = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[LABELS]
VALUES_X, VALUES = load_diabetes(return_X_y=True, scaled=True)
QUICK: dict[str, Any] = {"hidden": (10,), "learning_rate": 0.02, "max_iter": 40}


@parametrize_with_checks([DistributedClassifier(), DistributedRegressor()])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    """None is expected to fail."""
    check(estimator)


def test_string_labels_are_predicted() -> None:
    classifier = DistributedClassifier(**QUICK).fit(X, NAMES)
    assert classifier.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert classifier.score(X, NAMES) > 0.9
    assert set(classifier.predict(X)) <= set(NAMES)
    probabilities = classifier.predict_proba(X)
    assert probabilities.shape == (150, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(classifier.classes_[probabilities.argmax(axis=1)], classifier.predict(X))
    np.testing.assert_array_equal(np.log(probabilities), classifier.predict_log_proba(X))
    assert log_loss(NAMES, probabilities) < 0.5


def test_attributes_are_those_of_scikit_learns_networks() -> None:
    own = DistributedClassifier(**QUICK).fit(X, LABELS)
    theirs = MLPClassifier((10,), learning_rate_init=0.02, max_iter=40, random_state=0).fit(X, LABELS)
    for name in ("n_iter_", "n_features_in_", "validation_scores_", "best_validation_score_"):
        assert getattr(own, name) == getattr(theirs, name), name
    assert len(own.loss_curve_) == len(theirs.loss_curve_)
    assert own.loss_ == own.loss_curve_[-1]
    assert own.best_loss_ == min(own.loss_curve_)
    assert own.loss_ == pytest.approx(theirs.loss_, abs=0.15)
    assert own.model_.summary["train_loss"] == own.loss_


def test_several_answers_and_several_values() -> None:
    x, y = make_multilabel_classification(200, n_classes=3, random_state=0)
    classifier = DistributedClassifier(**QUICK).fit(x, y)
    assert classifier.predict_proba(x).shape == classifier.predict(x).shape == (200, 3)
    np.testing.assert_array_equal(classifier.predict(x), classifier.predict_proba(x) > 0.5)
    assert (classifier.predict(x) == y).mean() > 0.7
    two = np.stack([VALUES, -2 * VALUES], axis=1) / 100
    regressor = DistributedRegressor(**QUICK | {"max_iter": 100}).fit(VALUES_X, two)
    assert regressor.predict(VALUES_X).shape == (442, 2)
    assert regressor.score(VALUES_X, two) > 0.4
    assert DistributedRegressor(**QUICK).fit(VALUES_X, VALUES).predict(VALUES_X).shape == (442,)
    with pytest.raises(ValueError, match="several labels of more than two classes"):
        DistributedClassifier().fit(X, np.stack([LABELS, LABELS], axis=1))


def test_weights_of_examples_and_of_classes() -> None:
    weights = np.where(LABELS == 2, 0.0, 3.0)
    weighted = DistributedClassifier(**QUICK, alpha=0).fit(X, LABELS, sample_weight=weights)
    without = DistributedClassifier(**QUICK, alpha=0).partial_fit(X[:1], LABELS[:1], classes=[0, 1, 2])
    assert weighted.classes_.tolist() == without.classes_.tolist() == [0, 1, 2]
    assert set(weighted.predict(X)) == {0, 1}, "examples of weight 0 are skipped"
    rare = np.r_[0:50, 50:60]
    by_label = DistributedClassifier(**QUICK, class_weight={0: 0.6, 1: 3.0}).fit(X[rare], LABELS[rare])
    balanced = DistributedClassifier(**QUICK, class_weight="balanced").fit(X[rare], LABELS[rare])
    np.testing.assert_allclose(by_label.predict_proba(X), balanced.predict_proba(X), rtol=1e-6)
    plain = DistributedClassifier(**QUICK).fit(X[rare], LABELS[rare])
    assert balanced.predict_proba(X)[:, 1].mean() > plain.predict_proba(X)[:, 1].mean()


def test_early_stopping_takes_the_epoch_that_validates_best() -> None:
    classifier = DistributedClassifier(**QUICK | {"max_iter": 200}, early_stopping=True, n_iter_no_change=5)
    classifier.fit(X, LABELS)
    scores = classifier.validation_scores_
    assert classifier.n_iter_ == len(scores) < 200
    assert classifier.best_validation_score_ == max(scores)
    assert scores.index(max(scores)) < len(scores) - 1
    assert classifier.best_loss_ is None
    with pytest.raises(ValueError, match="early_stopping"):
        classifier.partial_fit(X, LABELS)


def test_training_ends_where_the_loss_no_longer_improves() -> None:
    classifier = DistributedClassifier(hidden=(10,), learning_rate=0.05, tol=0.02, n_iter_no_change=3).fit(X, LABELS)
    curve = classifier.loss_curve_
    assert 3 < classifier.n_iter_ == len(curve) < 200
    assert min(curve[-4:]) > min(curve[:-4]) - 0.02
    with pytest.warns(UserWarning, match="max_iter= takes more"):
        DistributedClassifier(**QUICK, tol=0).fit(X, LABELS)


def test_warm_start_and_partial_fit_continue() -> None:
    warm = DistributedClassifier(**QUICK | {"max_iter": 5}, warm_start=True)
    first, *others = [warm.fit(X, LABELS).loss_ for _ in range(4)]
    assert max(others) < first / 2
    assert len(warm.loss_curve_) == 20
    assert warm.n_iter_ == 5
    again = DistributedClassifier(**QUICK | {"max_iter": 5})
    assert again.fit(X, LABELS).loss_ == again.fit(X, LABELS).loss_, "without warm_start a fit begins anew"

    part = DistributedClassifier(**QUICK)
    for number in range(40):
        chosen = np.arange(number % 5, 150, 5)
        part.partial_fit(X[chosen], NAMES[chosen], classes=["setosa", "versicolor", "virginica"])
    assert part.n_iter_ == 1
    assert len(part.loss_curve_) == 40
    assert part.score(X, NAMES) > 0.8
    with pytest.raises(ValueError, match="which are new"):
        part.partial_fit(X[:2], ["setosa", "tulip"])


def test_running_statistics_continue_with_the_parameters() -> None:
    model = "dense 10, batch-norm, relu, dense"
    warm = DistributedClassifier(model, max_iter=30, learning_rate=0.01, warm_start=True).fit(X, LABELS)
    before = warm.predict_proba(X)
    warm.set_params(max_iter=1, learning_rate=1e-9).fit(X, LABELS)
    np.testing.assert_allclose(warm.predict_proba(X), before, atol=0.02)


def test_random_state_chooses_the_result() -> None:
    def fitted(random_state: Any) -> Any:
        return (
            DistributedClassifier(**QUICK | {"max_iter": 3}, random_state=random_state).fit(X, LABELS).predict_proba(X)
        )

    np.testing.assert_array_equal(fitted(None), fitted(0))
    np.testing.assert_array_equal(fitted(7), fitted(7))
    assert (fitted(0) != fitted(7)).any()
    generator = np.random.RandomState(0)
    assert (fitted(generator) != fitted(generator)).any()
    np.testing.assert_array_equal(fitted(np.random.RandomState(5)), fitted(np.random.RandomState(5)))


def test_feature_names() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is missing: make test-integrations installs it")
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    classifier = DistributedClassifier(**QUICK).fit(frame, pandas.Series(NAMES))
    assert classifier.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert classifier.n_features_in_ == 4
    with pytest.raises(ValueError, match="feature names"):
        classifier.predict(frame[["b", "a", "c", "d"]])


def test_pickling_and_cloning() -> None:
    classifier = DistributedClassifier(nn.Sequential([nn.Dense(4, 3)]), max_iter=5).fit(X, NAMES)
    again = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(again.predict_proba(X), classifier.predict_proba(X))
    other = clone(classifier)
    assert not hasattr(other, "model_")
    assert other.get_params()["max_iter"] == 5
    np.testing.assert_array_equal(other.fit(X, NAMES).predict_proba(X), classifier.predict_proba(X))


def test_pipeline_search_and_cross_validation_in_two_processes() -> None:
    pipeline = make_pipeline(StandardScaler(), DistributedClassifier(**QUICK))
    grid = {"distributedclassifier__learning_rate": [1e-4, 0.05], "distributedclassifier__hidden": [(5,), (10, 10)]}
    search = GridSearchCV(pipeline, grid, cv=3, n_jobs=2).fit(X, NAMES)
    assert search.best_params_["distributedclassifier__learning_rate"] == 0.05
    assert search.best_score_ > 0.9
    alone = GridSearchCV(pipeline, grid, cv=3).fit(X, NAMES)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
    scores = cross_val_score(DistributedRegressor(**QUICK | {"max_iter": 100}), VALUES_X, VALUES / 100, cv=3)
    assert min(scores) > 0.3


def layers(example_shape: tuple[int, ...], outputs: int) -> distsgd.Layer:
    """A function that builds a model."""
    return nn.Sequential([nn.Dense(*example_shape, 8), nn.Activation("tanh"), nn.Dense(8, outputs)])


class Softmax(distsgd.FunctionObjective):
    """An objective: a subclass that holds nothing more."""


def softmax(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
    scores = params["w"] @ batch.x
    scores -= scores.max(axis=0)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=0)
    rows = np.arange(batch.y.shape[-1])
    loss = -np.log(probabilities[batch.y, rows]).sum()
    probabilities[batch.y, rows] -= 1
    grads["w"] += probabilities @ batch.x.T
    return float(loss), len(rows)


MODELS = [
    pytest.param("softmax", id="name"),
    pytest.param("dense 8, relu, batch-norm, dropout 0.1, dense", id="text"),
    pytest.param(layers((4,), 3), id="layer"),
    pytest.param(layers, id="function"),
]


@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_model(model: Any) -> None:
    classifier = clone(DistributedClassifier(model, learning_rate=0.05, max_iter=60))
    assert classifier.fit(X, NAMES).score(X, NAMES) > 0.9
    again = pickle.loads(pickle.dumps(classifier)) if model is not layers else classifier
    np.testing.assert_array_equal(again.predict(X), classifier.predict(X))


def test_an_objective_stays_as_it_is() -> None:
    start = np.zeros((3, 4))
    model = distsgd.FunctionObjective(softmax, {"w": start}, lambda params, batch: params["w"] @ batch.x)
    classifier = DistributedClassifier(model, learning_rate=0.05, max_iter=60).fit(X, LABELS)
    assert classifier.score(X, LABELS) > 0.9
    assert not start.any()


def test_images_stay_images() -> None:
    images = np.random.default_rng(0).random((40, 1, 8, 8))
    images[::2, :, :4] += 1
    labels = np.arange(40) % 2
    classifier = DistributedClassifier("conv 4 3x3, relu, global-pool, dense", learning_rate=0.05, max_iter=60)
    assert classifier.fit(images, labels).score(images, labels) > 0.9


def test_options_of_fit() -> None:
    classifier = DistributedClassifier(**QUICK, tol=0.5, n_iter_no_change=2, batch_size=50)
    classifier.set_params(fit_options={"log_every": 1, "schedule": "cosine", "dropout": 0.1}).fit(X, LABELS)
    rates = [record["learning_rate"] for record in classifier.model_.history]
    assert rates == sorted(rates, reverse=True)
    assert len(rates) == classifier.model_.summary["steps"] < 120
    assert len(classifier.loss_curve_) == classifier.n_iter_ < 40


def test_sparse_inputs_are_refused() -> None:
    scipy = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        DistributedClassifier().fit(scipy.csr_matrix(X), LABELS)
