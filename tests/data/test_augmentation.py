import numpy as np
import pytest
import tensorflow as tf
from helpers.images import encode, photo

from vitkeras import data
from vitkeras.errors import InputError

FULL = {"color_jitter": 0.4, "randaug_layers": 1, "erasing_rate": 1}


def augmented(augmentation, image_bytes, size, count):
    """Returns `(count, h, w, 3)`: an image augmented with the seeds (0, 7), (1, 7) ...

    `size` is the image size, or a `Preprocessing`.
    """
    preprocessing = size if isinstance(size, data.Preprocessing) else data.Preprocessing(size)

    @tf.autograph.experimental.do_not_convert
    def augment(seed):
        return augmentation.image(
            preprocessing, image_bytes, tf.stack([tf.cast(seed, tf.int32), 7])
        )

    mapped = tf.data.Dataset.range(count).map(augment, num_parallel_calls=2).batch(count)
    return next(mapped.as_numpy_iterator())


@pytest.mark.parametrize(
    "format, crop, options",
    [(format, crop, {}) for format in ("PNG", "JPEG") for crop in data.CROPS]
    + [("PNG", "none", FULL), ("JPEG", "inception_flip", FULL)],
)
def test_augmentation_is_a_function_of_its_seed(format, crop, options):
    augmentation, image_bytes = data.Augmentation(crop, **options), encode(photo(30, 44), format)
    images = augmented(augmentation, image_bytes, (16, 24), 6)
    assert images.shape == (6, 16, 24, 3) and images.dtype == np.uint8
    different = {image.tobytes() for image in images}
    expected = {"none": 1, "flip_only": 2}
    assert len(different) == (6 if options else expected.get(crop, 6))
    for seed in (0, 5):
        eager = augmentation.image(data.Preprocessing((16, 24)), image_bytes, tf.stack([seed, 7]))
        np.testing.assert_array_equal(eager, images[seed])


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_inception_crops_have_5_to_100_percent_of_the_area_and_half_are_flipped(format):
    # Red and green encode the coordinates of a pixel in the input.
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.mgrid[:64, :64] * 4
    encode_png_or_jpeg = tf.io.encode_png if format == "PNG" else tf.io.encode_jpeg
    quality = {} if format == "PNG" else {"quality": 100}
    images = augmented(
        data.Augmentation("inception_flip"), encode_png_or_jpeg(ramp, **quality).numpy(), (32, 32),
        60,
    )  # fmt: skip
    y, x = (images[..., channel].astype(float) / 4 for channel in (0, 1))
    areas = (np.ptp(y, axis=(1, 2)) + 1) * (np.ptp(x, axis=(1, 2)) + 1) / 64**2
    assert 0.03 < areas.min() < 0.25 and 0.7 < areas.max() < 1.05
    flipped = x[:, :, 0].mean(1) > x[:, :, -1].mean(1)
    assert 15 < flipped.sum() < 45


def test_flip_only_is_the_evaluation_image_or_its_mirror_image():
    image_bytes = encode(photo(30, 44))
    image = data.Preprocessing((16, 24)).evaluation_image(image_bytes).numpy()
    images = augmented(data.Augmentation("flip_only"), image_bytes, (16, 24), 60)
    flipped = [np.array_equal(each, image[:, ::-1]) for each in images]
    assert 15 < sum(flipped) < 45
    assert all(f or np.array_equal(x, image) for f, x in zip(flipped, images, strict=True))


def test_resize_and_flip_crops_everywhere_from_an_image_of_8_7_of_the_size():
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.mgrid[:64, :64] * 4
    image_bytes = tf.io.encode_png(ramp).numpy()
    size, enlarged = (28, 35), (32, 40)
    whole = data.Preprocessing(enlarged).evaluation_image(image_bytes).numpy()
    crops = {
        (y, x, flip): whole[y : y + size[0], x : x + size[1]][:, :: -1 if flip else 1].tobytes()
        for y in range(5) for x in range(6) for flip in (False, True)
    }  # fmt: skip
    positions = {content: position for position, content in crops.items()}
    assert len(positions) == 60
    images = augmented(data.Augmentation("resize_and_flip"), image_bytes, size, 200)
    found = [positions[image.tobytes()] for image in images]
    counts = [np.unique(column, return_counts=True)[1] for column in zip(*found, strict=True)]
    assert [len(count) for count in counts] == [5, 6, 2]
    assert all(count.min() > 0.5 * len(images) / len(count) for count in counts)


def test_resize_and_flip_crops_the_whole_long_side_if_the_aspect_ratio_is_kept():
    ramp = np.zeros((32, 320, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.mgrid[:32, :320] * np.array([4, 0.75])[:, None, None]
    image_bytes = tf.io.encode_png(ramp).numpy()
    keeping = data.Preprocessing((28, 28), crop_fraction=0.9)  # training does not depend on it
    images = augmented(data.Augmentation("resize_and_flip"), image_bytes, keeping, 200)
    left = images[:, 0, :, 1].min(1) / 0.75  # the image is 32 pixels high: it is not resized
    assert left.max() - left.min() > 270 and np.median(left) == pytest.approx(146, abs=40)
    assert set((images[:, 0, 0, 0] / 4).tolist()) == {0, 1, 2, 3, 4}
    unflipped = images[images[:, 0, 0, 1] < images[:, 0, -1, 1]]
    assert 70 < len(unflipped) < 130
    for image in unflipped[:9]:
        y, x = image[0, 0, 0] // 4, np.flatnonzero(ramp[0, :, 1] == image[0, 0, 1])
        assert any(np.array_equal(image, ramp[y : y + 28, i : i + 28]) for i in x)


def test_inception_crops_are_resized_whatever_evaluation_does():
    image_bytes = encode(photo(30, 44))
    squash, crop = (
        augmented(data.Augmentation("inception"), image_bytes, data.Preprocessing((16, 24), **o), 3)
        for o in ({}, {"crop_fraction": 0.5})
    )
    np.testing.assert_array_equal(squash, crop)


def test_affine_rotates_shears_scales_and_translates_within_its_bounds():
    # Red and green encode the coordinates in the input; blue is 255 inside of it.
    side = 64
    image = np.full((side, side, 3), 255, np.uint8)
    image[..., 1], image[..., 0] = np.mgrid[:side, :side] * 4
    center = (side - 1) / 2
    matrices = []
    image_bytes = tf.io.encode_png(image).numpy()
    for out in augmented(data.Augmentation("affine"), image_bytes, (side, side), 80).astype(float):
        y, x = np.nonzero(out[..., 2] > 254.999)
        positions = np.stack([x - center, y - center, np.ones(len(x))], 1)
        sampled = out[y, x, :2] / 4 - center
        matrix, *_ = np.linalg.lstsq(positions, sampled, rcond=None)
        # Values are rounded; neighboring pixels differ by 4.
        np.testing.assert_allclose(positions @ matrix, sampled, atol=0.25)
        matrices.append(matrix.T)
    low, high = np.min(matrices, 0), np.max(matrices, 0)  # rows x, y; columns x, y, translation
    bounds = np.array([[1.15, 0.48, side / 8], [0.30, 1.15, side / 8]])
    assert (np.abs(matrices) <= bounds + 0.02).all()
    assert (high[[0, 1], [0, 1]] > 1.05).all() and (low[[0, 1], [0, 1]] > 0.81).all()
    for i, j in ((0, 1), (0, 2), (1, 0), (1, 2)):
        assert low[i, j] < -0.5 * bounds[i, j] and high[i, j] > 0.5 * bounds[i, j]


def test_erasing_replaces_2_to_33_percent_of_the_area_at_its_rate():
    image_bytes = tf.io.encode_png(np.full((40, 40, 3), 9, np.uint8)).numpy()
    never, half, always = (
        (augmented(data.Augmentation(erasing_rate=rate), image_bytes, (40, 40), 60) != 9)
        .any(-1).mean((1, 2))
        for rate in (0.0, 0.5, 1.0)
    )  # fmt: skip
    assert never.max() == 0 and 15 < np.count_nonzero(half) < 45
    assert always.min() > 0.01 and 0.25 < always.max() < 0.36


def test_color_jitter_stays_within_its_strength():
    image_bytes = tf.io.encode_png(np.full((8, 8, 3), 100, np.uint8)).numpy()
    images = augmented(data.Augmentation(color_jitter=0.4), image_bytes, (8, 8), 100)
    # Contrast and saturation do not change a gray image of one value.
    values = images[:, 0, 0, 0]
    assert 60 <= values.min() < 70 and 130 < values.max() <= 140


def test_invalid_arguments():
    with pytest.raises(InputError, match="`crop` .*'inceptoin'.*Did you mean \"inception\""):
        data.Augmentation("inceptoin")
    for field, value in (
        ("mixup_alpha", -1), ("cutmix_alpha", float("nan")), ("color_jitter", 2),
        ("erasing_rate", "1"), ("randaug_magnitude", 31), ("randaug_layers", 17),
        ("randaug_layers", 1.5),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"`{field}` must be .*{field}={value!r}"):
            data.Augmentation(**{field: value})
