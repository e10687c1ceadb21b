"""Classifiers of features: ridge regression as the paper evaluates it, k-NN, logistic regression.

All take features `(n, d)` and integer labels `(n,)`; every class must have an example.
"""

import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

#: The authors' values: L2 strength, and the constant feature that stands for the bias.
RIDGE_L2, BIAS_FEATURE = 2.0**10, 100.0
#: Added to standard deviations.
EPSILON = 1e-5
#: Number of neighbors, and of rows whose similarities are in memory.
NUM_NEIGHBORS, CHUNK_SIZE = 20, 1024
#: Number of values from which on the linear probe uses several threads.
MIN_PARALLEL_SIZE = 10_000_000
#: L2 strengths that the linear probe is trained with, the strongest first.
L2_STRENGTHS = tuple(10.0**exponent for exponent in range(4, -5, -1))


class Head(NamedTuple):
    """The weights of a dense layer, float32.

    Attributes:
        kernel: `(d, classes)`.
        bias: `(classes,)`.
    """

    kernel: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns the logits `(n, classes)`."""
        return features @ self.kernel + self.bias

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Returns the fraction of examples whose largest logit is that of their label."""
        return float((self.logits(features).argmax(1) == labels).mean())

    def loss(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Returns the mean cross-entropy in nats."""
        logits = self.logits(features).astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
        return float(losses.mean())


def ridge_head(
    features: np.ndarray, labels: np.ndarray, num_classes: int, l2: float = RIDGE_L2
) -> Head:
    """Returns the closed-form solution of ridge regression.

    Features are standardized and extended by the constant 100, so that the bias is penalized too,
    but hardly. Targets are 1 for the class of an example and -1 for the others. With x the extended
    features and y the targets, the weights are `(x^T x + l2 I)^-1 x^T y`.

    Args:
        features: `(n, d)`.
        labels: `(n,)`.
        num_classes: Number of classes.
        l2: L2 strength.
    Source: https://github.com/google-research/big_vision, evaluators/fewshot_lsr.py.
    """
    x, mean, std = _standardize(features)
    x = np.concatenate([x, np.full((len(x), 1), BIAS_FEATURE)], axis=1)  # (n, d + 1)
    y = 2.0 * (labels[:, None] == np.arange(num_classes)) - 1  # (n, classes)
    if len(x) >= x.shape[1]:
        weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
    else:  # the same by the identity of Woodbury, with the smaller matrix
        weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), y)
    return _head_for_raw_features(weights[:-1], BIAS_FEATURE * weights[-1], mean, std)


class LinearProbe(NamedTuple):
    """A linear probe.

    Attributes:
        l2: L2 strength.
        head: The solution.
        converged: Whether the solver converged.
    """

    l2: float
    head: Head
    converged: bool


def linear_probes(
    features: np.ndarray, labels: np.ndarray, l2_strengths: Iterable[float] = L2_STRENGTHS
) -> Iterator[LinearProbe]:
    """Yields solutions of multinomial logistic regression on standardized features.

    The objective is the sum of the cross-entropies plus `l2 / 2` times the squared norm of the
    kernel. With two classes the kernel is the difference of their columns.

    Args:
        features: `(n, d)`.
        labels: `(n,)`, of all classes from 0 on, at least two.
        l2_strengths: L2 strengths; each solution is the start of the next one.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # scikit-learn depends on it

    x, mean, std = _standardize(features)
    solver = LogisticRegression(tol=1e-5, max_iter=1000, warm_start=True)
    for l2 in l2_strengths:
        solver.set_params(C=1 / l2)
        # On small problems the threads of BLAS wait for each other: five times the CPU time.
        limits = threadpool_limits(1 if x.size < MIN_PARALLEL_SIZE else None)
        with limits, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            solver.fit(x, labels)
        kernel, bias = solver.coef_.T, solver.intercept_
        if len(bias) == 1:  # two classes: one logit for their difference
            signs = np.array([-0.5, 0.5])
            kernel, bias = kernel * signs, bias * signs
        converged = not any(issubclass(each.category, ConvergenceWarning) for each in caught)
        yield LinearProbe(l2, _head_for_raw_features(kernel, bias, mean, std), converged)


def best_linear_probe(probes: Iterable[LinearProbe], features: np.ndarray, labels: np.ndarray):
    """Returns the probe with the best accuracy on other examples, of equal ones the lowest loss."""
    return max(
        probes,
        key=lambda probe: (
            probe.head.accuracy(features, labels), -probe.head.loss(features, labels)
        ),
    )  # fmt: skip


def knn_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    num_neighbors: int = NUM_NEIGHBORS,
) -> float:
    """Returns the accuracy of the k-nearest-neighbor classifier with cosine similarity.

    Each neighbor has one vote; of equal counts the smallest label wins.

    Args:
        features: `(n, d)`.
        labels: `(n,)`.
        queries: `(m, d)`, the features to classify.
        query_labels: `(m,)`.
        num_neighbors: Number of neighbors k, at most n.
    """
    keys = _normalize(features)
    correct = 0
    for begin in range(0, len(queries), CHUNK_SIZE):
        rows = slice(begin, begin + CHUNK_SIZE)
        similarities = _normalize(queries[rows]) @ keys.T  # (rows, n)
        nearest = np.argpartition(-similarities, num_neighbors - 1, axis=1)[:, :num_neighbors]
        votes = np.apply_along_axis(np.bincount, 1, labels[nearest], minlength=labels.max() + 1)
        correct += int((votes.argmax(1) == query_labels[rows]).sum())
    return correct / len(queries)


def _standardize(features):
    """Returns standardized features, their mean and their standard deviation, float64."""
    x = features.astype(np.float64)
    mean, std = x.mean(0), x.std(0) + EPSILON
    return (x - mean) / std, mean, std


def _head_for_raw_features(kernel, bias, mean, std):
    """Returns the head whose logits are those of a kernel and bias for standardized features."""
    kernel = kernel / std[:, None]
    return Head(kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32))


def _normalize(features):
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norms > 0, norms, 1)
