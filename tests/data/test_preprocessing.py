import numpy as np
import pytest
import tensorflow as tf
from helpers.images import encode, photo
from PIL import Image

from vitkeras import data
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


def test_json_round_trip_and_invalid_records():
    preprocessing = data.Preprocessing((16, 24))
    record = preprocessing.to_json()
    assert data.Preprocessing.from_json(record) == preprocessing
    with pytest.raises(InputError, match="preprocessing.json.*bicubic"):
        data.Preprocessing.from_json(record | {"resize": "bicubic"})
    with pytest.raises(InputError, match="preprocessing.json must have image_size"):
        data.Preprocessing.from_json({k: v for k, v in record.items() if k != "image_size"})
    for name, value in (
        ("image_size", 7), ("image_size", [16]), ("image_size", [0, 24]), ("image_size", "ab"),
        ("background", [1, 2]), ("background", [0, 0, 256]), ("background", None),
        ("antialias", 1), ("exif_orientation", "yes"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="two sides, three colors"):
            data.Preprocessing.from_json(record | {name: value})
