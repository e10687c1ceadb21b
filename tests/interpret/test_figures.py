import numpy as np
import pytest

from vitkeras.interpret import figures
from vitkeras.io.figures import to_png


@pytest.mark.parametrize("values", [np.ones((4, 4)), np.arange(5.0)[None], np.array([[1.0]])])
def test_heatmap_of_constant_values_and_of_a_single_row(values):
    image = np.zeros((20, 30, 3), np.uint8)
    figure = figures.plot_heatmap(image, values, "title", "unit", "model")
    assert to_png(figure).startswith(b"\x89PNG")


def test_spaced_indices_include_both_ends():
    assert figures.spaced_indices(5) == [0, 1, 2, 3, 4] and figures.spaced_indices(1) == [0]
    indices = figures.spaced_indices(37)
    assert len(indices) == figures.MAX_MAPS and (indices[0], indices[-1]) == (0, 36)
