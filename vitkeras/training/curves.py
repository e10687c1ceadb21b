"""Figure of the metrics of a run."""

from matplotlib.figure import Figure


def draw(rows: list[dict]) -> Figure:
    """Returns a figure of loss and accuracy against epochs.

    Args:
        rows: Dicts of `MetricsWriter`; some have no validation metrics.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        # The training loss includes label smoothing, class weights and dropout; the validation loss
        # does not.
        for key, label, style in (
            (name, "training (as minimized)" if name == "loss" else "training", "-"),
            (f"val_{name}", "validation", "o-"),
        ):
            points = [(row["epoch"], row[key]) for row in rows if key in row]
            if points:
                axis.plot(*zip(*points, strict=True), style, label=label, markersize=3)
        axis.set_xlabel("epoch")
        axis.set_ylabel("loss (cross-entropy, nats)" if name == "loss" else name)
        axis.grid(alpha=0.3)
        axis.legend()
    return figure
