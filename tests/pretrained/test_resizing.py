"""Resizing of position embeddings and patch projections, against SciPy, TensorFlow and Pillow."""

import numpy as np
import pytest

from vitkeras.pretrained.resizing import (
    RESIZES,
    resize_matrix,
    resize_patch_kernel,
    resize_positions,
)


def test_the_same_grid_is_the_identity():
    embeddings = np.random.default_rng(0).normal(size=(1, 7, 4)).astype("float32")
    np.testing.assert_array_equal(resize_positions(embeddings, (2, 3), (2, 3), 1), embeddings)


def test_constants_and_the_prefix_stay():
    embeddings = np.concatenate([np.zeros((1, 2, 4)), np.full((1, 6, 4), 3.5)], axis=1)
    resized = resize_positions(embeddings, (2, 3), (5, 4), num_prefix_tokens=2)
    assert resized.shape == (1, 22, 4)
    np.testing.assert_allclose(resized[:, 2:], 3.5)
    assert not resized[:, :2].any()


GRIDS = [
    ((4, 4), (7, 7)),
    ((3, 5), (6, 2)),
    ((6, 4), (3, 9)),
    ((14, 14), (24, 37)),
    ((9, 8), (1, 3)),
]


@pytest.mark.parametrize("old, new", GRIDS)
def test_zoom_is_scipys(old, new):
    from scipy.ndimage import zoom

    embeddings = np.random.default_rng(0).normal(size=(1, old[0] * old[1], 3))
    factors = (new[0] / old[0], new[1] / old[1], 1)
    expected = zoom(embeddings.reshape(*old, 3), factors, order=1).reshape(1, -1, 3)
    np.testing.assert_allclose(resize_positions(embeddings, old, new), expected, atol=1e-12)


@pytest.mark.parametrize("old, new", GRIDS)
def test_bilinear_is_tensorflows(old, new):
    import tensorflow as tf

    embeddings = np.random.default_rng(0).normal(size=(2, old[0] * old[1], 3)).astype("float32")
    expected = tf.image.resize(embeddings.reshape(2, *old, 3), new, "bilinear")
    resized = resize_positions(embeddings, old, new, resize="bilinear")
    np.testing.assert_allclose(resized, np.reshape(expected, resized.shape), atol=1e-5)


@pytest.mark.parametrize("old, new", GRIDS)
def test_bicubic_antialias_is_pils(old, new):
    from PIL import Image

    embeddings = np.random.default_rng(0).normal(size=old).astype("float32")
    image = Image.fromarray(embeddings).resize(new[::-1], Image.Resampling.BICUBIC)
    resized = resize_positions(embeddings.reshape(1, -1, 1), old, new, resize="bicubic_antialias")
    np.testing.assert_allclose(resized.reshape(new), image, atol=1e-6)


def test_bicubic_is_keyss_with_minus_three_quarters():
    row = resize_matrix(8, 16, "bicubic")[7]  # halfway to a quarter: between embeddings 3 and 4
    expected = [0, 0, -0.10546875, 0.87890625, 0.26171875, -0.03515625, 0, 0]
    np.testing.assert_allclose(row, expected, atol=1e-15)
    edge = resize_matrix(8, 16, "bicubic")[0]  # what lies outside counts as the edge
    np.testing.assert_allclose(edge[:2], [-0.03515625 + 0.26171875 + 0.87890625, -0.10546875])


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("old, new", GRIDS)
def test_every_resize_keeps_constants_and_mirror_images(resize, old, new):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(1, *old, 2))

    def resized(embeddings):
        rows = resize_positions(embeddings.reshape(1, -1, 2), old, new, resize=resize)
        return rows.reshape(1, *new, 2)

    np.testing.assert_allclose(resized(np.full((1, *old, 2), 3.5)), 3.5)
    if resize != "zoom" or 1 not in new:  # aligned corners take the first of one
        mirrored = resized(embeddings[:, ::-1, ::-1])
        np.testing.assert_allclose(mirrored, resized(embeddings)[:, ::-1, ::-1], atol=1e-12)


@pytest.mark.parametrize("old, new", [(4, 7), (8, 16), (5, 5)])
def test_an_enlarged_patch_gives_what_the_patch_gave(old, new):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    kernel, patch = rng.normal(size=(old, old, 3, 6)), rng.normal(size=(old, old, 3))
    large = tf.image.resize(patch, (new, new), "bilinear").numpy()
    again = np.tensordot(large, resize_patch_kernel(kernel, new), 3)
    np.testing.assert_allclose(again, np.tensordot(patch, kernel, 3), atol=1e-4)


def test_a_shrunk_patch_is_the_least_squares_of_it():
    kernel = np.random.default_rng(0).normal(size=(9, 9, 2, 3))
    line = resize_matrix(9, 4, "bilinear")
    shrink = np.kron(line, line)  # (16, 81): shrinks a patch of one channel
    expected, *_ = np.linalg.lstsq(shrink.T, kernel.reshape(81, -1), rcond=None)
    np.testing.assert_allclose(resize_patch_kernel(kernel, 4).reshape(16, -1), expected, atol=1e-10)


def test_a_wrong_grid_is_refused():
    with pytest.raises(ValueError, match=r"old_grid=\(2, 3\), num_prefix_tokens=1"):
        resize_positions(np.zeros((1, 9, 4)), (2, 3), (4, 4), 1)
