import keras
import numpy as np
import pytest

from vitkeras.errors import InputError
from vitkeras.training import SmoothedCrossEntropy


def test_loss_equals_that_of_keras_with_and_without_smoothing():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)).astype("float32"), rng.integers(0, 5, 6)
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    np.testing.assert_allclose(SmoothedCrossEntropy()(labels, logits), expected, rtol=1e-6)
    smoothed = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    expected = smoothed(np.eye(5)[labels], logits)
    loss = SmoothedCrossEntropy(0.2)
    np.testing.assert_allclose(loss(labels, logits), expected, rtol=1e-6)
    assert SmoothedCrossEntropy.from_config(loss.get_config()).label_smoothing == 0.2


def test_invalid_label_smoothing():
    with pytest.raises(InputError, match="label_smoothing=1"):
        SmoothedCrossEntropy(1)
