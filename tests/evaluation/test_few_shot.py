"""Classifiers of features, compared with scikit-learn on the same features."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier

from vitkeras.evaluation import few_shot


def clusters(count, num_classes, dim=12, seed=0):
    """Returns overlapping clusters with other scales per feature, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % num_classes)
    centers = np.random.default_rng(1).normal(size=(num_classes, dim))
    features = (centers[labels] + 0.8 * rng.normal(size=(count, dim))) * np.geomspace(0.1, 9, dim)
    return (features + 5).astype("float32"), labels


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("count", [10, 200])  # fewer and more examples than features
@pytest.mark.parametrize("l2", [few_shot.RIDGE_L2, 1.0])
def test_ridge_regression_is_that_of_scikit_learn(num_classes, count, l2):
    features, labels = clusters(count, num_classes)
    queries, query_labels = clusters(100, num_classes, seed=2)

    def extended(x):
        x = (x.astype("float64") - features.mean(0, "float64")) / (features.std(0) + 1e-5)
        return np.pad(x, ((0, 0), (0, 1)), constant_values=100.0)

    # The bias is the weight of the constant feature, so it is penalized.
    reference = RidgeClassifier(alpha=l2, fit_intercept=False, solver="svd")
    reference.fit(extended(features), labels)
    expected = reference.decision_function(extended(queries))
    head = few_shot.ridge_head(features, labels, num_classes, l2)
    logits = head.logits(queries)
    if num_classes == 2:  # scikit-learn has the column of the second class only
        np.testing.assert_allclose(logits[:, 0], -logits[:, 1], atol=1e-5)
        logits = logits[:, 1]
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    accuracy = (reference.predict(extended(queries)) == query_labels).mean()
    assert head.accuracy(queries, query_labels) == pytest.approx(accuracy) and accuracy < 1


@pytest.mark.parametrize("num_neighbors", [1, 20])
def test_nearest_neighbors_are_those_of_scikit_learn(num_neighbors, monkeypatch):
    monkeypatch.setattr(few_shot, "CHUNK_SIZE", 16)
    features, labels = clusters(200, 5)
    queries, query_labels = clusters(100, 5, seed=2)
    queries[3] = 0
    reference = KNeighborsClassifier(num_neighbors, metric="cosine").fit(features, labels)
    expected = reference.score(queries, query_labels)
    accuracy = few_shot.knn_accuracy(features, labels, queries, query_labels, num_neighbors)
    assert accuracy == pytest.approx(expected) and 0.3 < accuracy < 1


@pytest.mark.parametrize("num_classes", [2, 5])
def test_linear_probe_has_the_probabilities_of_scikit_learn(num_classes):
    features, labels = clusters(200, num_classes)
    queries, query_labels = clusters(100, num_classes, seed=2)
    mean, std = features.mean(0, "float64"), features.std(0, dtype="float64") + 1e-5
    probes = list(few_shot.linear_probes(features, labels, [100.0, 1.0]))
    assert all(probe.converged for probe in probes)
    for probe in probes:
        reference = LogisticRegression(C=1 / probe.l2, tol=1e-9, max_iter=9999)
        reference.fit((features - mean) / std, labels)
        expected = reference.predict_proba((queries - mean) / std)
        logits = probe.head.logits(queries)
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(probabilities, expected, atol=1e-3)
        loss = -np.log(expected[np.arange(100), query_labels]).mean()
        assert probe.head.loss(queries, query_labels) == pytest.approx(loss, abs=1e-3)


def test_the_l2_strength_is_that_of_the_best_accuracy_then_of_the_lowest_loss():
    features, labels = np.float32([[1], [-1]]), np.array([0, 1])

    def probe(l2, scale):
        head = few_shot.Head(np.float32([[scale, -scale]]), np.zeros(2, "float32"))
        return few_shot.LinearProbe(l2, head, True)

    probes = [probe(1.0, -5), probe(2.0, 0.5), probe(3.0, 2)]
    assert few_shot.best_linear_probe(probes, features, labels).l2 == 3.0
    assert few_shot.best_linear_probe(probes[:2], features, labels).l2 == 2.0


def test_a_solver_that_does_not_converge_is_no_warning_but_recorded(monkeypatch):
    from sklearn import linear_model

    class Short(linear_model.LogisticRegression):
        def set_params(self, **params):
            return super().set_params(**params, max_iter=1)

    monkeypatch.setattr(linear_model, "LogisticRegression", Short)
    (probe,) = few_shot.linear_probes(*clusters(200, 5), [1e-3])
    assert not probe.converged


def test_constant_features_do_not_matter():
    features, labels = clusters(60, 3)
    for constant in (0.0, 7.0):
        extended = np.pad(features, ((0, 0), (0, 1)), constant_values=constant)
        for make in (
            lambda x: few_shot.ridge_head(x, labels, 3),
            lambda x: next(few_shot.linear_probes(x, labels, [1.0])).head,
        ):
            logits = make(extended).logits(extended)
            np.testing.assert_allclose(logits, make(features).logits(features), atol=1e-3)
