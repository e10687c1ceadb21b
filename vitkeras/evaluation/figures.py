"""Figures of an evaluation: the confusion matrix and the reliability diagram.

The colormap is viridis, the default of Matplotlib: its lightness increases with the value.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from vitkeras.evaluation.classification import NUM_BINS, Calibration
from vitkeras.io.figures import plain_text

#: Maximum number of classes whose names, and whose counts, are drawn.
MAX_NAMES, MAX_COUNTS = 60, 20
#: Maximum number of characters of a name.
MAX_LENGTH = 24
#: Colors that differ in lightness too (Okabe and Ito).
BLUE, RED = "#0072b2", "#d55e00"


def plot_confusions(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Plots a confusion matrix, each row as fractions of its class; zeros are blank.

    With many classes a cell is a dot that is larger than the cell, so that it is visible.

    Args:
        matrix: Counts, `(classes, classes)`, a row per class of the examples.
        class_names: Names of the classes.
    """
    size = len(matrix)
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    named = size <= MAX_NAMES
    image: ScalarMappable
    inches = min(max(1.5 + 0.45 * size, 4), 8 if named else 9)
    figure = Figure(figsize=(inches + 1, inches), layout="constrained")
    axes = figure.subplots()
    norm = PowerNorm(0.5, 0, 1)  # shows single mistakes
    if named:
        shown = np.where(matrix > 0, fractions, np.nan)
        image = axes.imshow(shown, norm=norm, interpolation="nearest")
        names = [plain_text(_shorten(name)) for name in class_names]
        axes.set_xticks(range(size), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(size), names)
        axes.tick_params(labelsize=9 if size <= MAX_COUNTS else 6)
    else:
        rows, columns = np.nonzero(matrix)
        order = np.argsort(fractions[rows, columns], kind="stable")  # the largest on top
        rows, columns = rows[order], columns[order]
        values = fractions[rows, columns]
        image = axes.scatter(columns, rows, s=6, c=values, marker="s", norm=norm, linewidths=0)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    axes.set(xlabel="predicted class", ylabel="class of the image")
    figure.colorbar(image, ax=axes, label="fraction of the images of the class", shrink=0.8)
    if size <= MAX_COUNTS:
        for row, column in np.argwhere(matrix).tolist():
            color = "black" if fractions[row, column] > 0.3 else "white"
            count = f"{matrix[row, column]:,}"
            axes.text(column, row, count, ha="center", va="center", color=color, fontsize=8)
    return figure


def _shorten(name):
    return name if len(name) <= MAX_LENGTH else f"{name[: MAX_LENGTH - 1]}\N{HORIZONTAL ELLIPSIS}"


def plot_reliability(calibration: Calibration) -> Figure:
    """Plots the accuracy against the probability, and the number of images of each bin.

    Args:
        calibration: Of the predictions.
    """
    figure = Figure(figsize=(5.5, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    centers, width = (np.arange(NUM_BINS) + 0.5) / NUM_BINS, 1 / NUM_BINS
    bars: dict[str, Any] = {"width": width, "edgecolor": "white", "linewidth": 0.5, "color": BLUE}
    filled = calibration.counts > 0
    accuracy, probability = calibration.accuracy[filled], calibration.probability[filled]
    top.bar(centers[filled], accuracy, label="accuracy", **bars)
    top.plot(
        probability, accuracy, "o", color="black", markersize=4, label="at the mean probability"
    )
    top.plot([0, 1], [0, 1], "--", color=RED, label="perfect calibration")
    top.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    top.grid(alpha=0.3)
    bottom.bar(centers, calibration.counts, **bars)
    bottom.set(xlabel="probability of the predicted class", ylabel="images")
    bottom.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside lower center", ncols=3)
    return figure
