"""The verification accepts a correct export and refuses every other one."""

import os

import numpy as np
import pytest
from helpers.exports import CLASS_NAMES, PREPROCESSING, SIZE
from helpers.models import make

from vitkeras import serving
from vitkeras.errors import RunError
from vitkeras.serving import export, verification, warmup


@pytest.fixture(scope="module")
def images():
    return warmup.sample_images(SIZE)


@pytest.fixture(scope="module")
def outputs(exported, images):
    """What a fresh process computes with the export."""
    return verification._replay(exported, [*images, b"not an image"])


def test_a_correct_export_is_accepted_and_others_are_refused(
    outputs, exported, model, images, monkeypatch
):
    def verify(model, **changes):
        monkeypatch.setattr(verification, "_replay", lambda *_: outputs | changes)
        return verification.verify_export(exported, model, PREPROCESSING, images, "float32")

    differences = verify(model)
    assert 0 <= differences["probabilities"] < 1e-5 and 0 <= differences["features"] < 1e-4
    other = make("Ti/16", SIZE, len(CLASS_NAMES))
    head = other.get_layer("head")
    head.kernel.assign(head.kernel + 1e-3 * np.eye(*head.kernel.shape))
    with pytest.raises(RunError, match=r"1e-05.*'probabilities': \d"):
        verify(other)
    for name in ("serving_default/valid", "features/features"):
        wrong = outputs[name].copy()
        wrong[-1] = True  # the invalid image
        with pytest.raises(RunError, match=name):
            verify(model, **{name: wrong})
    wrong = outputs["pixels/probabilities"].copy()
    wrong[0, 0] = np.nan
    with pytest.raises(RunError, match="pixels/probabilities"):
        verify(model, **{"pixels/probabilities": wrong})


def test_an_export_that_does_not_load_is_not_published(model, tmp_path, monkeypatch):
    def remove_index(path, *_):
        os.remove(path.parent.parent / "variables/variables.index")

    monkeypatch.setattr(export, "write_warmup", remove_index)
    with pytest.raises(RunError, match="could not be loaded"):
        serving.export_saved_model(model, PREPROCESSING, CLASS_NAMES, tmp_path / "tiny")
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == [".lock"]
