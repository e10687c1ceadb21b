"""Evaluates all classifiers of `few_shot` on the features of a data set."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from vitkeras.data.folder_listing import printable
from vitkeras.data.splits import SPLITS, few_shot_indices
from vitkeras.errors import InputError
from vitkeras.evaluation.features import SplitFeatures
from vitkeras.evaluation.few_shot import (
    NUM_NEIGHBORS,
    Head,
    best_linear_probe,
    knn_accuracy,
    linear_probes,
    ridge_head,
)

#: Images per class of the few-shot evaluation, and the number of its draws.
SHOTS, SEEDS = 5, 3


class ProbeResult(NamedTuple):
    """Accuracies of a classifier of features.

    Attributes:
        name: The classifier.
        validation: Accuracy on the validation split, for each draw of the training images.
        test: Accuracy on the test split, likewise.
    """

    name: str
    validation: list[float]
    test: list[float]


def check_classes(class_names: Sequence[str], train_labels: Sequence[int]) -> None:
    """Checks that there are two classes, each with a training image. Logs classes with few.

    Raises:
        InputError: If not.
    """
    counts = np.bincount(train_labels, minlength=len(class_names))
    names = [printable(name) for name in class_names]
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    if len(names) < 2 or missing:
        raise InputError(
            "A probe needs two or more classes, each with a training image. Received: "
            f"{len(names)} classes, {len(missing)} without a training image"
            f"{': ' * bool(missing)}{', '.join(missing[:5])}."
        )
    few = [f"{n} {count}" for n, count in zip(names, counts, strict=True) if count < SHOTS]
    if few:
        logging.warning(
            "%d of %d classes have fewer than %d training images, of which all are used: %s.",
            len(few), len(names), SHOTS, ", ".join(few[:5]) + ", ..." * (len(few) > 5),
        )  # fmt: skip


def probe_features(
    features: Mapping[str, SplitFeatures], num_classes: int
) -> tuple[list[ProbeResult], ProbeResult, Head]:
    """Evaluates ridge regression, k nearest neighbors and a linear probe.

    Args:
        features: Features by split.
        num_classes: Number of classes; each has a training image.
    Returns:
        All results; the one with the best validation accuracy, of the linear probe and the ridge
        regression with all images (of equal ones the linear probe); and its head.
    """
    train, validation, test = (features[split] for split in SPLITS)
    few_shot = []
    for seed in range(SEEDS):
        indices = few_shot_indices(map(str, range(len(train.labels))), train.labels, SHOTS, seed)
        rows = np.sort(np.concatenate(list(indices.values())))
        few_shot.append(ridge_head(train.values[rows], train.labels[rows], num_classes))
    ridge = ridge_head(*train, num_classes)
    probe = best_linear_probe(linear_probes(*train), *validation)
    if not probe.converged:
        logging.warning("The linear probe with L2 strength %g did not converge.", probe.l2)

    def evaluate_heads(name, heads):
        accuracies = ([head.accuracy(*split) for head in heads] for split in (validation, test))
        return ProbeResult(name, *accuracies)

    linear_result = evaluate_heads(f"linear probe, L2 strength {probe.l2:g}", [probe.head])
    ridge_result = evaluate_heads("ridge regression, all images", [ridge])
    num_neighbors = min(NUM_NEIGHBORS, len(train.labels))
    results = [
        evaluate_heads(f"ridge regression, {SHOTS} images per class", few_shot),
        ridge_result,
        ProbeResult(
            f"{num_neighbors} nearest neighbors",
            [knn_accuracy(*train, *validation, num_neighbors)],
            [knn_accuracy(*train, *test, num_neighbors)],
        ),
        linear_result,
    ]
    if ridge_result.validation > linear_result.validation:
        return results, ridge_result, ridge
    return results, linear_result, probe.head
