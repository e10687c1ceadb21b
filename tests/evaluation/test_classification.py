import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from vitkeras.evaluation.classification import (
    NUM_BINS,
    calibration,
    class_metrics,
    confusions,
)


def made(num_classes, count, seed, without=()):
    """Labels and predictions; a class of `without` has no example, the last is never predicted."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.setdiff1d(np.arange(num_classes), without), count)
    predicted = np.where(rng.random(count) < 0.6, labels, rng.integers(0, num_classes, count))
    predicted[predicted == num_classes - 1] = 0
    return labels.astype("int32"), predicted.astype("int32")


@pytest.mark.filterwarnings("ignore:A single label")  # of scikit-learn, for one class
@pytest.mark.parametrize(
    "num_classes, count, without", [(1, 5, ()), (3, 40, ()), (9, 500, (2, 5)), (40, 30, (0,))]
)
def test_metrics_of_classes_equal_those_of_scikit_learn(num_classes, count, without):
    labels, predicted = made(num_classes, count, seed=count, without=without)
    actual, every = class_metrics(labels, predicted, num_classes), np.arange(num_classes)
    options = {"labels": every, "zero_division": np.nan}
    *expected, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, **options
    )
    assert actual.support.tolist() == support.tolist() and sum(support) == count
    assert actual.predicted.tolist() == np.bincount(predicted, minlength=num_classes).tolist()
    np.testing.assert_allclose(actual.precision, expected[0], equal_nan=True)
    np.testing.assert_allclose(actual.recall, expected[1], equal_nan=True)
    np.testing.assert_allclose(actual.f1, expected[2], equal_nan=True)

    present = np.unique(labels)
    *macro, _ = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=present, average="macro", zero_division=0
    )
    assert list(actual.macro()) == ["macro_precision", "macro_recall", "macro_f1"]
    np.testing.assert_allclose(list(actual.macro().values()), macro)
    ordered = actual.f1[actual.worst_first()][: len(present)]
    assert (np.diff(ordered) >= 0).all()
    assert set(actual.worst_first()[len(present) :]) == set(every) - set(present)

    found = confusions(labels, predicted, num_classes)
    matrix = sklearn_metrics.confusion_matrix(labels, predicted, labels=every)
    np.testing.assert_array_equal(found.matrix(num_classes), matrix)
    mistakes = found.mistakes()
    assert (
        mistakes.counts.tolist()
        == sorted(matrix[~np.eye(num_classes, dtype=bool) & (matrix > 0)])[::-1]
    )
    np.testing.assert_array_equal(mistakes.counts, matrix[mistakes.labels, mistakes.predicted])


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_the_calibration_error_is_that_of_the_definition(count):
    rng = np.random.default_rng(count)
    probabilities = rng.random(count).astype("float32")
    probabilities[0] = 1.0
    correct = rng.random(count) < probabilities**2
    expected = 0.0
    for i in range(15):
        in_bin = (probabilities > i / 15) & (probabilities <= (i + 1) / 15)
        if in_bin.any():
            gap = correct[in_bin].mean() - probabilities[in_bin].astype("float64").mean()
            expected += in_bin.mean() * abs(gap)
    actual = calibration(probabilities, correct)
    assert NUM_BINS == 15 and abs(actual.error - expected) < 1e-12
    assert actual.counts.sum() == count and actual.counts[-1] > 0
    filled = actual.counts > 0
    assert np.isnan(actual.accuracy[~filled]).all() and np.isnan(actual.probability[~filled]).all()
    mean = (actual.counts * np.nan_to_num(actual.accuracy)).sum() / count
    assert abs(mean - correct.mean()) < 1e-12
