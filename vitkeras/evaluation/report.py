"""The report of `vitkeras evaluate`: JSON, CSV files, an HTML page and a table for a terminal."""

import functools
import itertools
import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np

from vitkeras.data.folder_listing import printable
from vitkeras.errors import RunError
from vitkeras.evaluation.classification import (
    NUM_BINS,
    Calibration,
    ClassMetrics,
    Confusions,
    calibration,
    class_metrics,
    confusions,
)
from vitkeras.evaluation.metrics import TOP, ExampleResults
from vitkeras.io.rows import csv_text

#: Maximum number of classes with a confusion matrix, and of confusions and mistakes that are shown.
MAX_MATRIX, MAX_CONFUSIONS, MAX_MISTAKES = 1000, 50, 24
#: Maximum number of classes in the table for a terminal, and of characters of their names.
MAX_LINES, MAX_NAME = 20, 32


class Evaluation:
    """The results of the examples of a split, and their statistics.

    Args:
        results: The results, in the order of the examples.
        class_names: Class names in the order of the labels.
        paths: Path of each example; None if the images are not files.
        loss: The loss of the run, "softmax" or "sigmoid".
    Raises:
        RunError: If a logit is not finite.
    """

    def __init__(
        self,
        results: ExampleResults,
        class_names: Sequence[str],
        paths: Sequence[str] | None,
        loss: str = "softmax",
    ):
        self.results, self.class_names, self.paths = results, class_names, paths
        self.loss = loss
        finite = np.isfinite(results.losses) & np.isfinite(results.probabilities)
        if not finite.all():
            first = int(np.flatnonzero(~finite)[0])
            raise RunError(
                "The logits of the model must be finite. Received: NaN or infinity for "
                f"{int((~finite).sum())} of {len(finite)} images, first {self.name(first)}."
            )
        labels, predicted, num_classes = results.labels, results.predicted, len(class_names)
        self.class_metrics: ClassMetrics = class_metrics(labels, predicted, num_classes)
        self.confusions: Confusions = confusions(labels, predicted, num_classes)
        self.calibration: Calibration = calibration(results.probabilities, results.correct)

    def name(self, index: int) -> str:
        """Returns the path of an example, or its number in the split."""
        return f"image {index}" if self.paths is None else str(self.paths[index])

    def summary(self) -> dict[str, Any]:
        """Returns the metrics of the split as JSON can hold them.

        The top-5 accuracy is None with at most 5 classes, where it would be 1. As in
        `make_evaluator`, `loss_function` is there if it is not softmax.
        """
        results = self.results
        num_examples = len(results.labels)
        missing = np.flatnonzero(self.class_metrics.support == 0).tolist()
        return {
            "accuracy": int(results.correct.sum()) / num_examples,
            "loss": float(results.losses.mean(dtype="float64")),
            "examples": num_examples,
            **({} if self.loss == "softmax" else {"loss_function": self.loss}),
            f"top_{TOP}_accuracy": (
                int(results.in_top.sum()) / num_examples if len(self.class_names) > TOP else None
            ),
            **self.class_metrics.macro(),
            "ece": self.calibration.error,
            "missing_classes": [self.class_names[i] for i in missing],
        }

    def class_rows(self, order: Iterable[int] | None = None) -> list[list[Any]]:
        """Returns (class, precision, recall, F1, support, predicted) of each class.

        Undefined metrics are None.

        Args:
            order: Labels of the classes to return; None for all.
        """
        columns = [values.tolist() for values in self.class_metrics]
        rows = [
            [name, *(None if math.isnan(value) else value for value in values)]
            for name, *values in zip(self.class_names, *columns, strict=True)
        ]
        return rows if order is None else [rows[label] for label in order]

    def confusion_rows(self) -> list[list[Any]]:
        """Returns (class, predicted class, images, fraction of the class) of each confusion.

        The most frequent `MAX_CONFUSIONS` are returned.
        """
        columns = self.confusions.mistakes()
        rows = zip(*(column[:MAX_CONFUSIONS].tolist() for column in columns), strict=True)
        names, support = self.class_names, self.class_metrics.support.tolist()
        return [
            [names[label], names[predicted], count, count / support[label]]
            for label, predicted, count in rows
        ]

    def mistakes(self) -> np.ndarray:
        """Returns the indices of the `MAX_MISTAKES` most confident mistakes, the worst first."""
        wrong = np.flatnonzero(~self.results.correct)
        order = np.argsort(-self.results.probabilities[wrong], kind="stable")
        return wrong[order[:MAX_MISTAKES]]


CLASS_COLUMNS = ("class", "precision", "recall", "f1", "support", "predicted")
CONFUSION_COLUMNS = ("class", "predicted", "images", "fraction_of_class")


def make_files(
    evaluation: Evaluation, header: dict[str, Any], page: str
) -> dict[str, Callable[[IO[bytes]], object] | bytes]:
    """Returns the files of a report, for `vitkeras.io.atomic.write_directory`.

    Args:
        evaluation: The results.
        header: First entries of metrics.json.
        page: The HTML page.
    """
    bins = evaluation.calibration
    record = {
        **header,
        **evaluation.summary(),
        "classes": [dict(zip(CLASS_COLUMNS, row, strict=True)) for row in evaluation.class_rows()],
        "confusions": [
            dict(zip(CONFUSION_COLUMNS, row, strict=True)) for row in evaluation.confusion_rows()
        ],
        "calibration": [
            {
                "above": i / NUM_BINS, "up_to": (i + 1) / NUM_BINS, "images": int(count),
                "probability": float(probability) if count else None,
                "accuracy": float(accuracy) if count else None,
            }
            for i, (count, probability, accuracy) in enumerate(zip(*bins[1:], strict=True))
        ],
    }  # fmt: skip
    files: dict[str, Callable[[IO[bytes]], object] | bytes] = {
        "predictions.csv": functools.partial(_write_csv, _prediction_rows(evaluation)),
        "per_class.csv": csv_text([CLASS_COLUMNS, *evaluation.class_rows()]).encode(),
    }
    names = evaluation.class_names
    if len(names) <= MAX_MATRIX:
        matrix = evaluation.confusions.matrix(len(names)).tolist()
        rows = ([name, *row] for name, row in zip(names, matrix, strict=True))
        files["confusion.csv"] = csv_text([["class", *names], *rows]).encode()
    text = json.dumps(record, indent=1, allow_nan=False)
    return files | {"report.html": page.encode(), "metrics.json": f"{text}\n".encode()}


#: Every file of a report.
FILES = ("predictions.csv", "per_class.csv", "confusion.csv", "report.html", "metrics.json")


def _prediction_rows(evaluation) -> Iterator[list[Any]]:
    results, names = evaluation.results, evaluation.class_names
    yield [
        "index", "path", "class", "predicted", "probability", "probability_of_class", "correct"
    ]  # fmt: skip
    for i, label in enumerate(results.labels):
        yield [
            i, evaluation.paths and evaluation.paths[i], names[label], names[results.predicted[i]],
            f"{results.probabilities[i]:.6g}",
            f"{results.label_probabilities[i]:.6g}", str(results.correct[i]).lower(),
        ]  # fmt: skip


def _write_csv(rows, file):
    while chunk := list(itertools.islice(rows, 10_000)):
        file.write(csv_text(chunk).encode("utf-8", "surrogateescape"))


def format_table(evaluation: Evaluation) -> str:
    """Returns the metrics as a table of a few lines: all of the split, and the worst classes."""
    summary = evaluation.summary()
    top = summary[f"top_{TOP}_accuracy"]
    parts = [f"accuracy {summary['accuracy']:.1%}"]
    parts += [] if top is None else [f"top-{TOP} {top:.1%}"]
    parts += [
        f"macro F1 {summary['macro_f1']:.3f}", f"loss {summary['loss']:.4f}",
        f"calibration error {summary['ece']:.3f}",
    ]  # fmt: skip
    order = evaluation.class_metrics.worst_first()
    shown = evaluation.class_rows(order[:MAX_LINES])
    names = [_shorten(row[0]) for row in shown]
    width = max(len("class"), *map(_display_width, names))
    lines = [
        f"{summary['examples']:,} images: {', '.join(parts)}",
        f"{'class':{width}}  precision  recall     F1  images  predicted",
    ]
    for name, (_, precision, recall, f1, support, predicted) in zip(names, shown, strict=True):
        cells = ("-" if x is None else f"{x:.3f}" for x in (precision, recall, f1))
        padding = " " * (width - _display_width(name))
        row = "{:>9}  {:>6}  {:>5}  {:>6}  {:>9}".format(*cells, support, predicted)
        lines.append(f"{name}{padding}  {row}")
    if len(order) > MAX_LINES:
        lines.append(f"(the {MAX_LINES} classes with the lowest F1 of {len(order):,})")
    for label, predicted, count, fraction in evaluation.confusion_rows()[:3]:
        lines.append(
            f"{count:,} images ({fraction:.0%}) of {_shorten(label)} are predicted as "
            f"{_shorten(predicted)}"
        )
    return "\n".join(lines)


def _shorten(name):
    name = printable(name)
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}\u2026"


def _display_width(text):
    """Returns the number of terminal columns of a text."""
    wide = sum(unicodedata.east_asian_width(character) in "FW" for character in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
