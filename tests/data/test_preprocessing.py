import resource

import numpy as np
import pytest
import tensorflow as tf
from helpers.images import encode, giant, photo
from PIL import Image

from vitkeras import data
from vitkeras.data.preprocessing import declared_pixels
from vitkeras.errors import InputError


def bilinear(image, height, width):
    """Half-pixel bilinear resize without antialias, in float64."""
    for axis, new in ((0, height), (1, width)):
        old = image.shape[axis]
        position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, old - 1)
        weight = (position - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        image = np.take(image, low, axis) * (1 - weight) + np.take(image, high, axis) * weight
    return image


def test_evaluation_image_is_a_bilinear_resize_that_ignores_the_aspect_ratio():
    expected = bilinear(np.asarray(photo(30, 44), np.float64), 16, 24)
    preprocessing = data.Preprocessing((16, 24))
    image_bytes = encode(photo(30, 44))
    image = preprocessing.evaluation_image(image_bytes)
    assert image.dtype == tf.uint8
    np.testing.assert_allclose(image, expected, atol=0.501)
    mapped = tf.data.Dataset.from_tensors(image_bytes).map(preprocessing.evaluation_image)
    assert mapped.element_spec.shape == (16, 24, 3)
    np.testing.assert_array_equal(next(iter(mapped)), image)
    resized = preprocessing.resize(data.decode_image(image_bytes)[None])  # as in serving
    np.testing.assert_array_equal(resized[0], image)


def test_antialias_is_recorded_and_smooths():
    image_bytes = encode(photo(160, 240))
    plain, smooth = (data.Preprocessing((16, 24), antialias) for antialias in (False, True))
    assert smooth == data.Preprocessing.from_json(smooth.to_json()) != plain
    reference = photo(160, 240).resize((24, 16), Image.Resampling.BILINEAR)
    out = smooth.evaluation_image(image_bytes).numpy().astype(int)
    assert np.abs(out - np.asarray(reference)).max() <= 1
    assert np.abs(out - plain.evaluation_image(image_bytes).numpy()).max() > 1


@pytest.mark.parametrize("format, mode", [
    ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("PNG", "I;16"), ("PNG", "LA"),
    ("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("BMP", "RGB"), ("GIF", "P"),
])  # fmt: skip
def test_every_mode_becomes_rgb(format, mode):
    image = data.decode_image(encode(photo(30, 44, mode), format)).numpy()
    assert image.shape == (30, 44, 3) and image.dtype == np.uint8
    if mode in ("RGBA", "P", "CMYK") or format == "BMP":
        reference = np.asarray(photo(30, 44), int)
        assert np.abs(image - reference).mean() < 25
    if mode in ("L", "LA", "I;16"):
        reference = np.asarray(photo(30, 44).convert("L"), int)
        assert np.abs(image[..., 0] - reference).mean() < 3
        assert (image[..., 0] == image[..., 2]).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP"])
def test_a_header_that_declares_too_many_pixels_is_rejected_before_memory_is_allocated(format):
    assert int(declared_pixels(encode(photo(30, 44), format))) == 30 * 44
    image_bytes = giant(format)
    assert int(declared_pixels(image_bytes)) == 2_500_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    augmentation = data.Augmentation("inception")
    for decode in (
        data.decode_image,
        lambda x: augmentation.image(data.Preprocessing((8, 8)), x, tf.constant([0, 0])),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="at most 100,000,000 pixels"):
            decode(image_bytes)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_declared_pixels_of_an_unknown_format_is_zero():
    for content in (b"", b"BM", b"GIF8", b"\x89PNG", b"hello, world, this is no image at all"):
        assert int(declared_pixels(content)) == 0


def test_json_round_trip_and_invalid_records():
    preprocessing = data.Preprocessing((16, 24))
    record = preprocessing.to_json()
    assert data.Preprocessing.from_json(record) == preprocessing
    with pytest.raises(InputError, match="preprocessing.json.*bicubic"):
        data.Preprocessing.from_json(record | {"resize": "bicubic"})
    with pytest.raises(InputError, match="preprocessing.json must have image_size"):
        data.Preprocessing.from_json({k: v for k, v in record.items() if k != "image_size"})
