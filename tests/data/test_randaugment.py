"""RandAugment against PIL and, for equal pixels, TensorFlow Addons."""

import os

import numpy as np
import pytest
import tensorflow as tf
from helpers.images import photo
from PIL import Image, ImageEnhance, ImageOps

from vitkeras.data import randaugment
from vitkeras.errors import InputError

IMAGE = np.asarray(photo(37, 53, seed=3)).copy()
IMAGE[5:20, 8:30] = np.random.default_rng(0).integers(0, 256, (15, 22, 3))  # edges and noise
DIM = (40 + 0.6 * IMAGE).astype(np.uint8)
LARGE = np.asarray(photo(224, 224, seed=5))
FLAT = np.full((9, 11, 3), 77, np.uint8)


def pil(operation, *arguments):
    return np.asarray(operation(Image.fromarray(IMAGE), *arguments))


def enhanced(kind, factor):
    return np.asarray(kind(Image.fromarray(IMAGE)).enhance(factor))


@pytest.mark.parametrize(
    "actual, expected, tolerance",
    [
        (lambda _: randaugment.autocontrast(DIM),
         lambda: np.asarray(ImageOps.autocontrast(Image.fromarray(DIM))), 1),
        (lambda x: randaugment.equalize(x), lambda: pil(ImageOps.equalize), 0),
        (lambda x: randaugment.posterize(x, 3), lambda: pil(ImageOps.posterize, 3), 0),
        (lambda x: randaugment.solarize(x, 100), lambda: pil(ImageOps.solarize, 100), 0),
        (lambda x: 255 - x, lambda: pil(ImageOps.invert), 0),
        (lambda x: randaugment.color(x, 1.9), lambda: enhanced(ImageEnhance.Color, 1.9), 2),
        (lambda x: randaugment.color(x, 0.3), lambda: enhanced(ImageEnhance.Color, 0.3), 2),
        (lambda x: randaugment.contrast(x, 2.2), lambda: enhanced(ImageEnhance.Contrast, 2.2), 2),
        (lambda x: randaugment.contrast(x, 0.5), lambda: enhanced(ImageEnhance.Contrast, 0.5), 2),
        (lambda x: randaugment.brightness(x, 1.7), lambda: enhanced(ImageEnhance.Brightness, 1.7),
         1),
        (lambda x: randaugment.sharpness(x, 2.8), lambda: enhanced(ImageEnhance.Sharpness, 2.8), 3),
        (lambda x: randaugment.sharpness(x, 0.1), lambda: enhanced(ImageEnhance.Sharpness, 0.1), 2),
    ],
)  # fmt: skip
def test_operations_equal_those_of_pil(actual, expected, tolerance):
    out = np.asarray(actual(tf.constant(IMAGE)))
    assert out.dtype == np.uint8 and not np.array_equal(out, IMAGE)
    assert np.abs(out.astype(int) - expected()).max() <= tolerance


def test_solarize_add_adds_to_values_below_128():
    for addition in (0, 66, 220):
        out = randaugment.solarize_add(tf.constant(IMAGE), addition)
        expected = np.where(IMAGE < 128, np.minimum(IMAGE.astype(int) + addition, 255), IMAGE)
        np.testing.assert_array_equal(out, expected)


@pytest.fixture(scope="module")
def addons():
    os.environ["TF_ADDONS_PY_OPS"] = "1"
    return pytest.importorskip("tensorflow_addons", reason="the extra `addons` is not installed")


FACTORS = (0.1, 0.7, 1.0, 1.9, 3.7)


@pytest.mark.filterwarnings("ignore")
def test_operations_equal_those_of_addons(addons):
    x, image = tf.constant(IMAGE), addons.image
    np.testing.assert_array_equal(randaugment.equalize(x), image.equalize(x))
    np.testing.assert_array_equal(randaugment.equalize(FLAT), image.equalize(FLAT))
    gray = np.floor(IMAGE @ np.array(randaugment.GRAY, "float32"))[..., None].repeat(3, -1)
    windows = np.lib.stride_tricks.sliding_window_view(IMAGE.astype(int), (3, 3), axis=(0, 1))
    sums = windows.sum((-1, -2)) + 4 * IMAGE[1:-1, 1:-1].astype(int)
    # If the smoothed value is an integer, their convolution may round to just below it.
    comparable = np.pad(sums % 13 != 0, ((1, 1), (1, 1), (0, 0)), constant_values=True)
    assert comparable.mean() > 0.9
    for factor in FACTORS:
        actual, expected = (
            np.asarray(f(x, factor)) for f in (randaugment.sharpness, image.sharpness)
        )
        np.testing.assert_array_equal(actual[comparable], expected[comparable])
        for actual, other in ((randaugment.brightness, 0 * IMAGE), (randaugment.color, gray)):
            other = tf.constant(other.astype("uint8"))
            np.testing.assert_array_equal(actual(x, factor), image.blend(other, x, factor))
    for level in (-0.6, 0.3):
        fill = tf.constant([128, 128, 128], tf.uint8)
        sheared = image.shear_x(x, level, fill), image.shear_y(x, level, fill)
        np.testing.assert_array_equal(randaugment.warp(x, (1, level, 0, 0, 1, 0)), sheared[0])
        np.testing.assert_array_equal(randaugment.warp(x, (1, 0, 0, level, 1, 0)), sheared[1])
    for offset in (-10.0, 7.0):
        expected = image.translate(x, [-offset, 0], fill_mode="constant", fill_value=128.0)
        np.testing.assert_array_equal(randaugment.translate(x, x=offset), expected)
        expected = image.translate(x, [0, -offset], fill_mode="constant", fill_value=128.0)
        np.testing.assert_array_equal(randaugment.translate(x, y=offset), expected)
    for degrees in (-45, 17):
        expected = image.rotate(x, np.radians(degrees), fill_mode="constant", fill_value=128.0)
        np.testing.assert_array_equal(randaugment.rotate(x, degrees), expected)
    expected = image.cutout(x[None], (20, 20), offset=(15, 30), constant_values=128)[0]
    center = tf.constant([15.5 / 37, 30.5 / 53])
    np.testing.assert_array_equal(randaugment.cutout(x, center, 10), expected)


def test_uniform_images_stay_uniform():
    for name, operation in randaugment.OPERATIONS.items():
        if name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout"):
            continue
        out = np.asarray(operation(tf.constant(FLAT), 1.5, 1.0, tf.constant([0.5, 0.5])))
        assert len(np.unique(out)) == 1, name


def test_the_result_depends_on_the_seed_only_eagerly_and_mapped():
    x = tf.constant(LARGE)

    @tf.autograph.experimental.do_not_convert
    def augment(i):
        return randaugment.rand_augment(x, tf.stack([7, tf.cast(i, tf.int32)]), 2, 15)

    mapped = tf.data.Dataset.range(40).map(augment, num_parallel_calls=2)
    outs = list(mapped.as_numpy_iterator())
    for i in (0, 7, 39):
        np.testing.assert_array_equal(augment(i), outs[i])
    assert len({out.tobytes() for out in outs}) > 35
    assert all(out.shape == LARGE.shape and out.dtype == np.uint8 for out in outs)


def test_every_operation_is_equally_likely(monkeypatch):
    no_indices = tf.zeros((0,), tf.int32)
    seeds = tf.data.Dataset.range(400).map(lambda i: tf.stack([1, tf.cast(i, tf.int32)]))
    monkeypatch.setattr(
        randaugment, "apply_operation", lambda index, found, *_: tf.concat([found, [index]], 0)
    )
    indices = seeds.map(lambda seed: randaugment.rand_augment(no_indices, seed, 2, 10)).batch(400)
    counts = np.bincount(next(indices.as_numpy_iterator()).ravel())
    assert len(counts) == 16 and counts.sum() == 800 and counts.min() > 25 and counts.max() < 80


def test_both_signs_occur_and_magnitudes_are_checked():
    x = tf.constant(IMAGE)
    index = list(randaugment.OPERATIONS).index("TranslateX")
    outs = [
        randaugment.apply_operation(index, x, 1, tf.constant([draw, 0.5, 0.5]))
        for draw in (0.2, 0.8)
    ]
    np.testing.assert_array_equal(outs[0][:, 10:], IMAGE[:, :-10])
    np.testing.assert_array_equal(outs[1][:, :-10], IMAGE[:, 10:])
    with pytest.raises(InputError, match="`magnitude` .*magnitude=31"):
        randaugment.rand_augment(x, (0, 0), 2, 31)
