import keras
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from vitkeras.errors import InputError
from vitkeras.training import SmoothedCrossEntropy, SmoothedSigmoidCrossEntropy
from vitkeras.training.losses import balanced_class_weights


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


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sigmoid_loss_is_the_sum_over_the_classes_of_a_binary_cross_entropy(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 30, (6, 5)).astype("float32"), rng.integers(0, 5, 6)
    targets = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    binary = keras.losses.BinaryCrossentropy(from_logits=True, reduction=None)
    expected = 5 * np.asarray(binary(targets, logits))
    loss = SmoothedSigmoidCrossEntropy(smoothing, reduction=None)
    np.testing.assert_allclose(loss(labels, logits), expected, rtol=1e-5)
    mixed = rng.dirichlet(np.ones(5), 6).astype("float32")
    expected = 5 * np.asarray(binary((1 - smoothing) * mixed + smoothing / 5, logits))
    np.testing.assert_allclose(loss(mixed, logits), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [SmoothedCrossEntropy, SmoothedSigmoidCrossEntropy])
def test_class_weights_multiply_the_loss_of_an_example(kind):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)).astype("float32"), rng.integers(0, 5, 6)
    weights = np.array([0.5, 2, 0, 1, 1.5])
    each = np.asarray(kind(0.1, reduction=None)(labels, logits))
    weighted = kind(0.1, weights)
    np.testing.assert_allclose(weighted(labels, logits), (weights[labels] * each).mean(), rtol=1e-6)
    # As `class_weight` of `fit`, which Keras passes on as the weights of the examples.
    expected = kind(0.1)(labels, logits, sample_weight=weights[labels])
    np.testing.assert_allclose(weighted(labels, logits), expected, rtol=1e-6)
    mixed = rng.dirichlet(np.ones(5), 6).astype("float32")
    expected = (mixed @ weights * np.asarray(kind(0.1, reduction=None)(mixed, logits))).mean()
    np.testing.assert_allclose(weighted(mixed, logits), expected, rtol=1e-6)
    copy = kind.from_config(weighted.get_config())
    assert copy.class_weights == weights.tolist() and copy.label_smoothing == 0.1


def test_balanced_weights_are_those_of_scikit_learn_and_have_mean_1():
    labels = np.repeat(range(4), [1, 20, 3, 400])
    weights = balanced_class_weights(np.bincount(labels))
    np.testing.assert_allclose(
        weights, compute_class_weight("balanced", classes=np.arange(4), y=labels)
    )
    assert np.mean(np.array(weights)[labels]) == pytest.approx(1)
    assert balanced_class_weights([3, 0, 1]) == [pytest.approx(2 / 3), 0, 2]


def test_invalid_arguments():
    with pytest.raises(InputError, match="label_smoothing=1"):
        SmoothedCrossEntropy(1)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="`class_weights` must be finite"):
            SmoothedSigmoidCrossEntropy(0, [1, weight])
