"""The picture of a run's metrics."""

import io

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from vitkeras.storage import write_file  # noqa: E402


def draw(rows, path):
    """Draws loss and accuracy against epochs into a PNG, whole or not at all.

    Args:
        rows: Dicts as `MetricsFile` keeps them; validation is absent in some.
        path: The file.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        # What is minimised has label smoothing and dropout in it, what validates has not.
        for key, label, style in (
            (name, "training (as minimised)" if name == "loss" else "training", "-"),
            (f"val_{name}", "validation", "o-"),
        ):
            points = [(row["epoch"], row[key]) for row in rows if key in row]
            if points:
                axis.plot(*zip(*points, strict=True), style, label=label, markersize=3)
        axis.set_xlabel("epoch")
        axis.set_ylabel("loss (cross-entropy, nats)" if name == "loss" else name)
        axis.grid(alpha=0.3)
        axis.legend()
    content = io.BytesIO()
    figure.savefig(content, dpi=100, format="png")
    plt.close(figure)
    write_file(path, content.getvalue())
