import numpy as np
from helpers.models import make

from vitkeras.interpret.report import Report


def test_only_images_with_an_original_get_figures_of_their_own():
    model, images = make(image_size=(32, 48)), np.zeros((2, 32, 48, 3), np.uint8)
    report = Report(model, "model", ["one", "two"], [np.zeros((9, 9, 3), np.uint8)], images)
    report.add_rollout()
    assert list(report.files) == ["rollout_01.png"]
    assert report.arrays["rollout"].shape == (2, 4, 6)
