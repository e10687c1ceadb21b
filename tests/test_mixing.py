"""Mixup, CutMix, erasing and colour jitter."""

import keras
import numpy as np
import tensorflow as tf
from conftest import TINY

import vitkeras as vk
from vitkeras import data, training
from vitkeras.data.mixing import mix
from vitkeras.data.preprocessing import Preprocessing
from vitkeras.data.stored import Columns

RNG = np.random.default_rng(0)
IMAGES = tf.constant(RNG.integers(0, 256, (6, 8, 10, 3)), tf.uint8)
LABELS = tf.one_hot([0, 1, 2, 3, 0, 1], 4)
PARTNERS = np.roll(IMAGES, 1, axis=0).astype(float)


def test_mixup_blends_with_the_one_before_and_keeps_half_or_more():
    shares = set()
    for i in range(30):
        images, labels = mix(IMAGES, LABELS, tf.constant([3, i]), mixup_alpha=0.5)
        share = float(labels[0, 0])  # its partner, the last one, is of class 1
        assert 0.5 <= share <= 1
        shares.add(round(share, 3))
        expected = share * np.asarray(IMAGES, float) + (1 - share) * PARTNERS
        np.testing.assert_allclose(images, expected, atol=0.501)
        expected = share * LABELS + (1 - share) * np.roll(LABELS, 1, 0)
        np.testing.assert_allclose(labels, expected, atol=1e-6)
    assert len(shares) > 20


def test_each_example_may_have_its_own_share():
    images, labels = mix(IMAGES, LABELS, tf.constant([3, 1]), 0.5, mixup_per_example=True)
    shares = np.max(labels, axis=1)
    assert len(set(shares.round(4))) == 6 and (shares >= 0.5).all()
    shares = shares[:, None, None, None]
    expected = shares * np.asarray(IMAGES, float) + (1 - shares) * PARTNERS
    np.testing.assert_allclose(images, expected, atol=0.501)


def test_cutmix_puts_a_box_of_the_one_before_and_labels_tell_its_area():
    areas = []
    for i in range(30):
        images, labels = mix(IMAGES, LABELS, tf.constant([3, i]), cutmix_alpha=1.0)
        taken = (np.asarray(images) != np.asarray(IMAGES)).any(-1)  # (b, h, w)
        inside = (np.asarray(images) == PARTNERS).all(-1)
        assert (inside | ~taken).all() and (taken == taken[:1]).all()
        ys, xs = np.nonzero(taken[0])
        if len(ys):
            assert taken[0, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].all()
        areas.append(taken[0].mean())
        np.testing.assert_allclose(labels[0, 1], areas[-1], atol=1e-6)
    assert min(areas) < 0.1 and max(areas) > 0.5


def test_with_both_each_batch_gets_one():
    kinds = set()
    for i in range(20):
        both, _ = mix(IMAGES, LABELS, tf.constant([5, i]), 0.5, cutmix_alpha=1.0)
        one, _ = mix(IMAGES, LABELS, tf.constant([5, i]), 0.5)
        other, _ = mix(IMAGES, LABELS, tf.constant([5, i]), cutmix_alpha=1.0)
        kinds.add("mixup" if np.array_equal(both, one) else "cutmix")
        assert np.array_equal(both, one) or np.array_equal(both, other)
    assert kinds == {"mixup", "cutmix"}


def test_small_alphas_give_numbers():
    for i in range(200):
        _, labels = mix(IMAGES, LABELS, tf.constant([1, i]), mixup_alpha=0.01)
        assert np.isfinite(labels).all()
        np.testing.assert_allclose(np.sum(labels, 1), 1, atol=1e-5)


def test_erasing_leaves_the_rest():
    image_bytes = tf.io.encode_png(np.full((40, 40, 3), 9, np.uint8)).numpy()
    areas = []
    for rate in (0.0, 0.5, 1.0):
        augmentation = data.Augmentation("none", erasing_rate=rate)
        outs = [
            augmentation.image(Preprocessing((40, 40)), image_bytes, tf.constant([i, 0]))
            for i in range(60)
        ]
        areas.append([float((np.asarray(out) != 9).any(-1).mean()) for out in outs])
    none, half, whole = areas
    assert max(none) == 0 and 15 < np.count_nonzero(half) < 45
    assert min(whole) > 0.01 and 0.25 < max(whole) < 0.36


def test_colour_jitter_keeps_to_its_bounds():
    image_bytes = tf.io.encode_png(np.full((8, 8, 3), 100, np.uint8)).numpy()
    augmentation = data.Augmentation("none", color_jitter=0.4)
    values = [
        int(augmentation.image(Preprocessing((8, 8)), image_bytes, tf.constant([i, 0]))[0, 0, 0])
        for i in range(100)
    ]
    # One grey: contrast and saturation leave it.
    assert 60 <= min(values) < 70 and 130 < max(values) <= 140


class Source:
    class_names = ["a", "b", "c", "d"]

    def num_examples(self, split):
        return 24

    def stored(self, split):
        pictures = [tf.io.encode_png(np.full((9, 9, 3), 10 * i, np.uint8)) for i in range(24)]
        return Columns({"image_bytes": tf.stack(pictures), "label": tf.range(24) % 4})


def test_mixed_batches_go_on_where_they_stopped_and_train():
    augmentation = data.Augmentation(
        "inception_flip", randaug_layers=2, mixup_alpha=0.5, cutmix_alpha=1.0, color_jitter=0.2,
        erasing_rate=0.3,
    )  # fmt: skip

    def batches(epoch=0, step=0, seed=0):
        return list(
            data.training_batches(
                Source(), Preprocessing((8, 8)), 8, 2, seed, augmentation, epoch, step
            ).as_numpy_iterator()
        )

    whole = batches()
    assert len(whole) == 6 and whole[0][1].shape == (8, 4) and whole[0][0].dtype == np.uint8
    for epoch, step in ((0, 2), (1, 0), (1, 1)):
        rest = batches(epoch, step)
        for (x, y), (again_x, again_y) in zip(whole[3 * epoch + step :], rest, strict=True):
            np.testing.assert_array_equal(x, again_x)
            np.testing.assert_array_equal(y, again_y)
    assert not np.array_equal(batches(seed=1)[0][0], whole[0][0])
    assert len({x.tobytes() for x, _ in whole}) == 6
    model = vk.vit("Ti/4", image_size=8, num_classes=4, **TINY)
    model.compile("adam", training.SmoothedCrossEntropy(0.1), metrics=["accuracy"])
    history = model.fit(
        data.training_batches(Source(), Preprocessing((8, 8)), 8, 1, 0, augmentation),
        verbose=0, shuffle=False, steps_per_epoch=3,
    )  # fmt: skip
    assert np.isfinite(history.history["loss"][0]) and 0 <= history.history["accuracy"][0] <= 1


def test_the_loss_of_shares_is_that_of_labels():
    logits = tf.constant(RNG.normal(size=(6, 4)), tf.float32)
    for smoothing in (0.0, 0.1):
        loss = training.SmoothedCrossEntropy(smoothing)
        np.testing.assert_allclose(
            loss(LABELS, logits), loss(tf.argmax(LABELS, 1), logits), atol=1e-6
        )
    mixed = 0.3 * LABELS + 0.7 * tf.roll(LABELS, 1, 0)
    expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    np.testing.assert_allclose(
        training.SmoothedCrossEntropy(0.1)(mixed, logits), expected(mixed, logits), atol=1e-6
    )


def test_pixels_and_scaled_floats_are_the_same_to_a_model(tmp_path):
    model = vk.vit("Ti/4", image_size=(8, 12), num_classes=3, **TINY)
    for weight in model.weights:
        weight.assign(weight + 0.1 * RNG.normal(size=weight.shape))
    pixels = RNG.integers(0, 256, (2, 8, 12, 3)).astype("uint8")
    floats = (pixels.astype("float32") - 127.5) / 127.5
    np.testing.assert_allclose(model(pixels), model(floats), atol=1e-6)
    np.testing.assert_allclose(model.predict(pixels, verbose=0), model(floats), atol=1e-6)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(pixels), model(floats), atol=1e-6)
