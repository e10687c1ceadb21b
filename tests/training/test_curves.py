import io

import numpy as np
from PIL import Image

from vitkeras.io.figures import to_png
from vitkeras.training.curves import draw


def test_curves_show_training_and_validation():
    rows = [
        {"epoch": 1, "loss": 2.0, "accuracy": 0.3},
        {"epoch": 2, "loss": 1.0, "accuracy": 0.6, "val_loss": 1.5, "val_accuracy": 0.5},
    ]
    figure = draw(rows)
    lines = {
        (axis.get_ylabel().split()[0], line.get_label().split()[0]): line.get_xydata().tolist()
        for axis in figure.axes
        for line in axis.lines
    }
    assert lines == {
        ("loss", "training"): [[1, 2.0], [2, 1.0]],
        ("loss", "validation"): [[2, 1.5]],
        ("accuracy", "training"): [[1, 0.3], [2, 0.6]],
        ("accuracy", "validation"): [[2, 0.5]],
    }
    image = np.asarray(Image.open(io.BytesIO(to_png(figure))))
    assert image.shape[:2] == (400, 1000) and len(np.unique(image)) > 10
