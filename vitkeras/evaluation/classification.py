"""Statistics of the examples of a split: per class, confusions, calibration."""

from typing import NamedTuple

import numpy as np

#: Number of bins of the calibration error, as in Guo et al. 2017.
NUM_BINS = 15


class ClassMetrics(NamedTuple):
    """Metrics of each class, arrays `(classes,)`.

    Attributes:
        precision: Fraction of the examples that are predicted as the class which are of it; NaN if
            there are none.
        recall: Fraction of the examples of the class that are predicted as it; NaN if there are
            none.
        f1: Harmonic mean of both: 2 TP / (2 TP + FP + FN); NaN if there are no such examples.
        support: Number of examples of the class.
        predicted: Number of examples that are predicted as the class.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    predicted: np.ndarray

    def macro(self) -> dict[str, float]:
        """Returns the means of precision, recall and F1 over the classes that have examples.

        The precision of a class that is never predicted counts as 0.
        """
        present = self.support > 0
        names = ("precision", "recall", "f1")
        columns = (self.precision, self.recall, self.f1)
        return {
            f"macro_{name}": float(np.nan_to_num(column[present]).mean())
            for name, column in zip(names, columns, strict=True)
        }

    def worst_first(self) -> np.ndarray:
        """Returns the indices of the classes by ascending F1; those without examples last."""
        key = np.where(self.support > 0, self.f1, np.inf)
        return np.argsort(key, kind="stable")


def class_metrics(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> ClassMetrics:
    """Returns the metrics of each class.

    Args:
        labels: Integers `(b,)`.
        predicted: Integers `(b,)`.
        num_classes: Number of classes.
    """
    support, positives, hits = (
        np.bincount(values, minlength=num_classes)
        for values in (labels, predicted, labels[labels == predicted])
    )
    return ClassMetrics(
        _ratio(hits, positives), _ratio(hits, support), _ratio(2 * hits, support + positives),
        support, positives,
    )  # fmt: skip


def _ratio(numerator, denominator):
    """Returns a quotient of counts, NaN where it is 0 / 0."""
    missing = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=missing, where=denominator > 0)


class Confusions(NamedTuple):
    """The entries of the confusion matrix that are not 0.

    Attributes:
        labels: Row of each entry, the class of the examples.
        predicted: Column of each entry, the predicted class.
        counts: Number of examples.
    """

    labels: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray

    def matrix(self, num_classes: int) -> np.ndarray:
        """Returns the matrix, int64 `(classes, classes)`."""
        matrix = np.zeros((num_classes, num_classes), np.int64)
        matrix[self.labels, self.predicted] = self.counts
        return matrix

    def mistakes(self) -> "Confusions":
        """Returns the entries outside of the diagonal, the most frequent first."""
        wrong = np.flatnonzero(self.labels != self.predicted)
        order = wrong[np.argsort(-self.counts[wrong], kind="stable")]
        return Confusions(*(column[order] for column in self))


def confusions(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> Confusions:
    """Returns the confusions, sorted by label and predicted label. Arguments: `class_metrics`."""
    pairs = labels.astype(np.int64) * num_classes + predicted
    found, counts = np.unique(pairs, return_counts=True)
    return Confusions(found // num_classes, found % num_classes, counts)


class Calibration(NamedTuple):
    """How the probability of the predicted class compares with the accuracy.

    Attributes:
        error: Expected calibration error: the mean over the examples of the difference between
            accuracy and mean probability of the bin of the example.
        counts: Number of examples of each bin; bin i has the probabilities above i / `NUM_BINS` and
            up to (i + 1) / `NUM_BINS`.
        probability: Mean probability of each bin; NaN if it is empty.
        accuracy: Accuracy of each bin; NaN if it is empty.
    """

    error: float
    counts: np.ndarray
    probability: np.ndarray
    accuracy: np.ndarray


def calibration(probabilities: np.ndarray, correct: np.ndarray) -> Calibration:
    """Returns the calibration of predictions.

    Args:
        probabilities: Probability of the predicted class, `(b,)`.
        correct: Whether the prediction is correct, `(b,)`.
    Source: Guo et al. 2017, equation 3.
    """
    edges = np.arange(1, NUM_BINS) / NUM_BINS
    bins = np.digitize(probabilities.astype(np.float64), edges, right=True)
    counts = np.bincount(bins, minlength=NUM_BINS)
    sums, hits = (
        np.bincount(bins, weights=values, minlength=NUM_BINS) for values in (probabilities, correct)
    )
    error = np.abs(hits - sums).sum() / len(probabilities)
    return Calibration(float(error), counts, _ratio(sums, counts), _ratio(hits, counts))
