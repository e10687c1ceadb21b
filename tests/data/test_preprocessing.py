from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.images import encode, photo
from helpers.processes import python
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
    mapped = tf.data.Dataset.from_tensors(image_bytes).map(smooth.evaluation_image)
    assert mapped.element_spec.shape == (16, 24, 3)
    np.testing.assert_array_equal(next(iter(mapped)), out)


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


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("height, width, size, fraction", [
    (60, 91, (16, 16), 0.875), (91, 60, (16, 16), 1.0), (300, 200, (24, 16), 0.75),
    (41, 200, (16, 24), 0.9), (5, 9, (16, 24), 0.875), (16, 24, (16, 24), 1.0),
])  # fmt: skip
def test_crop_is_a_resize_that_keeps_the_aspect_ratio_and_a_central_crop(
    height, width, size, fraction, antialias
):
    image = np.asarray(photo(height, width))
    covered = [int(side / fraction) for side in size]
    factor = max(covered[0] / height, covered[1] / width)
    resized = [round(height * factor), round(width * factor)]
    assert min(new - side for new, side in zip(resized, covered, strict=True)) == 0
    whole = tf.image.resize(image, resized, antialias=antialias).numpy()
    y, x = ((new - side) // 2 for new, side in zip(resized, size, strict=True))
    expected = whole[y : y + size[0], x : x + size[1]]
    preprocessing = data.Preprocessing(size, antialias, crop_fraction=fraction)
    for dtype in ("uint8", "float32"):
        out = preprocessing.resize(tf.constant(image, dtype))
        assert out.dtype == tf.uint8 and out.shape == (*size, 3)
        np.testing.assert_allclose(out, expected, atol=0.51)
    batch = preprocessing.resize(np.stack([image, image[:, ::-1]]))
    np.testing.assert_array_equal(batch[0], out)
    mapped = tf.data.Dataset.from_tensors(encode(photo(height, width)))
    mapped = mapped.map(preprocessing.evaluation_image)
    assert mapped.element_spec.shape == (*size, 3)
    np.testing.assert_array_equal(next(iter(mapped)), out)
    if (height, width) == size and fraction == 1:
        np.testing.assert_array_equal(out, image)


def test_the_visible_part_is_what_the_crop_shows():
    image = np.asarray(photo(70, 120))
    crop = data.Preprocessing((16, 24), crop_fraction=0.5)
    part = crop.visible_part(image)
    assert part.shape == (35, 52, 3)  # covers 32x48: the factor is 32 / 70
    squashed, cropped = (
        preprocessing.resize(each).numpy().astype(int)
        for preprocessing, each in ((data.Preprocessing((16, 24)), part), (crop, image))
    )
    assert np.abs(squashed - cropped).max() < 16 < np.abs(np.diff(cropped[::8], axis=0)).max()
    assert data.Preprocessing((16, 24)).visible_part(image) is image
    assert crop.visible_part(image[:1]).shape == (1, 1, 3)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("height, width", [(1, 5_000), (5_000, 1), (1, 1), (1, 30_000_000)])
def test_crop_of_an_extreme_aspect_ratio(height, width, antialias):
    # Enlarged, so that antialias has no effect: each pixel is a tent of 200 at the center.
    image = np.zeros((height, width, 3), np.uint8)
    image[height // 2, width // 2] = 200
    out = data.Preprocessing((16, 24), antialias, crop_fraction=0.875).resize(image).numpy()
    scale = max(18 // height, 27 // width)
    expected = np.full((16, 24), 200.0)
    for axis, (old, new) in enumerate(zip((height, width), (16, 24), strict=True)):
        position = (np.arange(new) + (old * scale - new) // 2 + 0.5) / scale - 0.5
        position = np.clip(position, 0, old - 1)
        tent = np.clip(1 - np.abs(position - old // 2), 0, 1)
        expected *= tent[:, None] if axis == 0 else tent
    np.testing.assert_allclose(out, np.repeat(expected[..., None], 3, 2), atol=0.51)


def test_old_records_have_no_crop_and_new_ones_say_it():
    old = {
        "image_size": [16, 24], "antialias": False, "background": [255, 255, 255],
        "exif_orientation": True, "resize": "bilinear", "value_range": [-1, 1],
    }  # fmt: skip
    squash = data.Preprocessing.from_json(old)
    assert squash == data.Preprocessing((16, 24)) and squash.to_json() == old
    assert "bilinear resize to 16x24 (height x width) without" in squash.describe()
    crop = data.Preprocessing((16, 24), crop_fraction=0.875)
    assert crop.to_json() == old | {"crop_fraction": 0.875}
    assert data.Preprocessing.from_json(crop.to_json()) == crop != squash
    assert "cover 18x27 (height x width) with the aspect ratio kept" in crop.describe()
    assert "central crop of 16x24" in crop.describe()
    for value in (0, -1, 1.01, float("nan"), "0.9", True):
        with pytest.raises(InputError, match="`crop_fraction` must be above 0 and at most 1"):
            data.Preprocessing.from_json(old | {"crop_fraction": value})


@pytest.mark.parametrize("shape", [(2, 300, 3), (300, 2, 3), (2, 3, 500, 3)])
def test_antialias_of_an_extreme_aspect_ratio(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    out = data.Preprocessing((16, 24), antialias=True).squash(tf.constant(image))
    expected = tf.image.resize(image, (16, 24), antialias=True)
    np.testing.assert_allclose(out, expected, atol=0.501)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.slow
def test_memory_of_large_and_of_wide_images():
    code = """
import re
from pathlib import Path
import tensorflow as tf
from helpers.exports import black_png
from vitkeras import data

crop = tf.function(data.Preprocessing((224, 224), crop_fraction=0.875).evaluation_image)
squash = data.Preprocessing((224, 224), antialias=True).squash
small, large = (tf.constant(black_png(side)) for side in (10, 9_000))
wide = tf.zeros((1, 10**6, 3), tf.uint8)
peaks = []
for function, image in ((crop, small), (squash, wide), (crop, large)):
    function(image)
    # Not `ru_maxrss`, which is at least the memory of the process that forked this one.
    peaks.append(int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]))
print(*((after - before) * 1024 for before, after in zip(peaks, peaks[1:])))
"""
    process = python("-c", code)
    of_wide, of_large = map(int, process.stdout.split())
    assert of_wide < 224 * 12 * 10**6 / 10  # as if the height were resized first
    assert 0.8 < of_large / (3 * 9_000**2) < 1.3  # one copy
