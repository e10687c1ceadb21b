import keras
import numpy as np
import tensorflow as tf

from vitkeras import training
from vitkeras.data.mixing import mix

RNG = np.random.default_rng(0)
IMAGES = tf.constant(RNG.integers(0, 256, (6, 8, 10, 3)), tf.uint8)
LABELS = tf.one_hot([0, 1, 2, 3, 0, 1], 4)
PRECEDING = np.roll(IMAGES, 1, axis=0).astype(float)


def mixed(count, *alphas, seed=3, **options):
    """Returns images `(count, b, h, w, 3)` and labels `(count, b, classes)` of several seeds."""

    def with_seed(i):
        return mix(IMAGES, LABELS, tf.stack([seed, tf.cast(i, tf.int32)]), *alphas, **options)

    return next(tf.data.Dataset.range(count).map(with_seed).batch(count).as_numpy_iterator())


def test_mixup_blends_with_the_preceding_image_and_keeps_at_least_half():
    weights = set()
    for images, labels in zip(*mixed(30, 0.5), strict=True):
        weight = float(labels[0, 0])  # the last image, which is mixed in, has class 1
        assert 0.5 <= weight <= 1
        weights.add(round(weight, 3))
        expected = weight * np.asarray(IMAGES, float) + (1 - weight) * PRECEDING
        np.testing.assert_allclose(images, expected, atol=0.501)
        expected = weight * LABELS + (1 - weight) * np.roll(LABELS, 1, 0)
        np.testing.assert_allclose(labels, expected, atol=1e-6)
    assert len(weights) > 20


def test_mixup_per_example_has_a_weight_for_each_example():
    images, labels = mix(IMAGES, LABELS, tf.constant([3, 1]), 0.5, mixup_per_example=True)
    weights = np.max(labels, axis=1)
    assert len(set(weights.round(4))) == 6 and (weights >= 0.5).all()
    weights = weights[:, None, None, None]
    expected = weights * np.asarray(IMAGES, float) + (1 - weights) * PRECEDING
    np.testing.assert_allclose(images, expected, atol=0.501)


def test_cutmix_pastes_a_box_of_the_preceding_image_and_labels_have_its_area():
    areas = []
    for images, labels in zip(*mixed(30, cutmix_alpha=1.0), strict=True):
        changed = (images != np.asarray(IMAGES)).any(-1)  # (b, h, w)
        pasted = (images == PRECEDING).all(-1)
        assert (pasted | ~changed).all() and (changed == changed[:1]).all()
        ys, xs = np.nonzero(changed[0])
        if len(ys):
            assert changed[0, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].all()
        areas.append(changed[0].mean())
        np.testing.assert_allclose(labels[0, 1], areas[-1], atol=1e-6)
    assert min(areas) < 0.1 and max(areas) > 0.5


def test_with_mixup_and_cutmix_each_batch_gets_one_of_them():
    both, mixup, cutmix = (
        mixed(20, *alphas, seed=5)[0] for alphas in ((0.5, False, 1.0), (0.5,), (0, False, 1.0))
    )
    is_mixup = [np.array_equal(*pair) for pair in zip(both, mixup, strict=True)]
    is_cutmix = [np.array_equal(*pair) for pair in zip(both, cutmix, strict=True)]
    assert all(np.logical_or(is_mixup, is_cutmix)) and not all(is_mixup) and not all(is_cutmix)


def test_a_small_alpha_gives_finite_labels():
    _, labels = mixed(200, 0.01, seed=1)
    assert np.isfinite(labels).all()
    np.testing.assert_allclose(labels.sum(-1), 1, atol=1e-5)


def test_the_loss_accepts_class_probabilities():
    logits = tf.constant(RNG.normal(size=(6, 4)), tf.float32)
    for smoothing in (0.0, 0.1):
        loss = training.SmoothedCrossEntropy(smoothing)
        np.testing.assert_allclose(
            loss(LABELS, logits), loss(tf.argmax(LABELS, 1), logits), atol=1e-6
        )
    mixed_labels = 0.3 * LABELS + 0.7 * tf.roll(LABELS, 1, 0)
    expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    np.testing.assert_allclose(
        training.SmoothedCrossEntropy(0.1)(mixed_labels, logits),
        expected(mixed_labels, logits),
        atol=1e-6,
    )
