"""Results of the checks, and the HTML page that shows them."""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vitkeras.io import html_page
from vitkeras.io.figures import plain_text, to_png

MAX_LABELED_CLASSES = 50


@dataclasses.dataclass
class CheckResult:
    """Result of a check.

    Args:
        title: Title of its section on the page.
        values: What was measured, by name; JSON-serializable.
        warnings: Sentences on what makes a run slow or its result worse.
        problems: Sentences on what prevents a run.
        figures: Pairs of a caption and the content of a PNG file.
        notes: Explains the values.
    """

    title: str
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    figures: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)
    notes: str = ""


def render(title: str, checks: list[CheckResult]) -> str:
    """Returns the HTML page: the verdict, all problems and warnings, and a section per check."""
    problems = [problem for check in checks for problem in check.problems]
    warnings = [warning for check in checks for warning in check.warnings]
    verdict = "The run cannot start." if problems else "The run can start."
    return html_page.render(
        title,
        [verdict, *(f"Problem: {each}" for each in problems),
         *(f"Warning: {each}" for each in warnings)],
        [
            html_page.Section(
                check.title, f"{format_values(check.values)}\n{check.notes}".strip(), check.figures
            )
            for check in checks
        ],
    )  # fmt: skip


def format_values(values: dict[str, Any]) -> str:
    """Returns one line of text per value."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {_format_number(v)}" for k, v in value.items())
        elif isinstance(value, list):
            value = "; ".join(map(str, value)) or "none"
        lines.append(f"{name.replace('_', ' ')}: {_format_number(value)}")
    return "\n".join(lines)


def _format_number(value):
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def draw_class_counts(class_names: list[str], counts: np.ndarray) -> bytes:
    """Returns a PNG with the number of images of each class, in descending order."""
    order = np.argsort(-counts, kind="stable")
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    labeled = len(counts) <= MAX_LABELED_CLASSES
    axes.bar(np.arange(len(counts)), counts[order], width=0.8 if labeled else 1.0)
    if labeled:
        names = [plain_text(class_names[i]) for i in order]
        axes.set_xticks(np.arange(len(counts)), names, rotation=60, ha="right")
    else:
        first, last = class_names[order[0]], class_names[order[-1]]
        axes.set_xlabel(plain_text(f"{len(counts)} classes, {first} to {last}"))
    axes.set_ylabel("images")
    return to_png(figure)


def draw_image_sizes(sizes: np.ndarray) -> bytes:
    """Returns a PNG with one point per image; `sizes` are rows of (height, width) in pixels."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(sizes[:, 1], sizes[:, 0], s=12, alpha=0.4, linewidths=0)
    axes.set(xlabel="width (pixels)", ylabel="height (pixels)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    return to_png(figure)


def draw_batch(images: np.ndarray, labels: np.ndarray, class_names: list[str]) -> bytes:
    """Returns a PNG of images with their labels.

    Args:
        images: uint8 `(b, h, w, 3)`.
        labels: Class indices `(b,)`, or probabilities `(b, classes)`.
        class_names: Names of the classes.
    """
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.4 * columns, 1.7 * rows), layout="constrained")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(image)
        axes.axis("off")
        axes.set_title(plain_text(_format_label(label, class_names)), fontsize=7)
    return to_png(figure)


def _format_label(label, class_names):
    if np.ndim(label) == 0:
        return str(class_names[label])[:20]
    largest = [i for i in np.argsort(-label)[:2] if label[i] > 0.005]
    return "\n".join(f"{label[i]:.2f} {class_names[i]}"[:20] for i in largest)
