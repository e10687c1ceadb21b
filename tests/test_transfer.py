import numpy as np
import pytest
from conftest import TINY

import vitkeras as vk
from vitkeras.errors import InputError
from vitkeras.positions import RESIZES, resize_matrix, resize_patches, resize_positions


def test_the_same_grid_is_the_identity():
    places = np.random.default_rng(0).normal(size=(1, 7, 4)).astype("float32")
    np.testing.assert_array_equal(resize_positions(places, (2, 3), (2, 3), 1), places)


def test_constants_and_the_prefix_stay():
    places = np.concatenate([np.zeros((1, 2, 4)), np.full((1, 6, 4), 3.5)], axis=1)
    resized = resize_positions(places, (2, 3), (5, 4), num_prefix_tokens=2)
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

    places = np.random.default_rng(0).normal(size=(1, old[0] * old[1], 3))
    factors = (new[0] / old[0], new[1] / old[1], 1)
    expected = zoom(places.reshape(*old, 3), factors, order=1).reshape(1, -1, 3)
    np.testing.assert_allclose(resize_positions(places, old, new), expected, atol=1e-12)


@pytest.mark.parametrize("old, new", GRIDS)
def test_bilinear_is_tensorflows(old, new):
    import tensorflow as tf

    places = np.random.default_rng(0).normal(size=(2, old[0] * old[1], 3)).astype("float32")
    expected = tf.image.resize(places.reshape(2, *old, 3), new, "bilinear")
    resized = resize_positions(places, old, new, resize="bilinear")
    np.testing.assert_allclose(resized, np.reshape(expected, resized.shape), atol=1e-5)


@pytest.mark.parametrize("old, new", GRIDS)
def test_bicubic_antialias_is_pils(old, new):
    from PIL import Image

    places = np.random.default_rng(0).normal(size=old).astype("float32")
    image = Image.fromarray(places).resize(new[::-1], Image.Resampling.BICUBIC)
    resized = resize_positions(places.reshape(1, -1, 1), old, new, resize="bicubic_antialias")
    np.testing.assert_allclose(resized.reshape(new), image, atol=1e-6)


def test_bicubic_is_keyss_with_minus_three_quarters():
    row = resize_matrix(8, 16, "bicubic")[7]  # halfway to a quarter: between places 3 and 4
    expected = [0, 0, -0.10546875, 0.87890625, 0.26171875, -0.03515625, 0, 0]
    np.testing.assert_allclose(row, expected, atol=1e-15)
    edge = resize_matrix(8, 16, "bicubic")[0]  # what lies outside counts as the edge
    np.testing.assert_allclose(edge[:2], [-0.03515625 + 0.26171875 + 0.87890625, -0.10546875])


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("old, new", GRIDS)
def test_every_resize_keeps_constants_and_mirror_images(resize, old, new):
    rng = np.random.default_rng(0)
    places = rng.normal(size=(1, *old, 2))

    def resized(places):
        rows = resize_positions(places.reshape(1, -1, 2), old, new, resize=resize)
        return rows.reshape(1, *new, 2)

    np.testing.assert_allclose(resized(np.full((1, *old, 2), 3.5)), 3.5)
    if resize != "zoom" or 1 not in new:  # aligned corners take the first of one
        mirrored = resized(places[:, ::-1, ::-1])
        np.testing.assert_allclose(mirrored, resized(places)[:, ::-1, ::-1], atol=1e-12)


@pytest.mark.parametrize("old, new", [(4, 7), (8, 16), (5, 5)])
def test_an_enlarged_patch_gives_what_the_patch_gave(old, new):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    kernel, patch = rng.normal(size=(old, old, 3, 6)), rng.normal(size=(old, old, 3))
    large = tf.image.resize(patch, (new, new), "bilinear").numpy()
    again = np.tensordot(large, resize_patches(kernel, new), 3)
    np.testing.assert_allclose(again, np.tensordot(patch, kernel, 3), atol=1e-4)


def test_a_shrunk_patch_is_the_least_squares_of_it():
    kernel = np.random.default_rng(0).normal(size=(9, 9, 2, 3))
    line = resize_matrix(9, 4, "bilinear")
    whole = np.kron(line, line)  # (16, 81): shrinks a patch of one channel
    expected, *_ = np.linalg.lstsq(whole.T, kernel.reshape(81, -1), rcond=None)
    np.testing.assert_allclose(resize_patches(kernel, 4).reshape(16, -1), expected, atol=1e-10)


def test_a_wrong_grid_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 9, 4\), grid \(2, 3\), 1 prefix"):
        resize_positions(np.zeros((1, 9, 4)), (2, 3), (4, 4), 1)


def models(**target):
    source = vk.vit("Ti/4", image_size=(8, 32), num_classes=3, **TINY)
    for weight in source.weights:
        weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    options = {"variant": "Ti/4", "image_size": (8, 32), "num_classes": 3, **TINY, **target}
    return source, vk.vit(**options)


def test_all_but_the_head_is_copied():
    source, target = models()
    report = vk.transfer_weights(source, target)
    for old, new in zip(source.weights[:-2], target.weights[:-2], strict=True):
        np.testing.assert_array_equal(old, new)
    assert not np.any(target.get_layer("head").kernel)
    assert sorted(report["fresh"]) == report["unused"] == ["head/bias", "head/kernel"]
    assert len(report["copied"]) == len(target.weights) - 2


def test_positions_are_resized_also_when_only_the_shape_of_the_grid_differs():
    source, target = models(image_size=(16, 16), num_classes=5)
    report = vk.transfer_weights(source, target)
    assert report["resized"] == ["patch_encoder/positions/embedding"]
    old = source.get_layer("patch_encoder").positions.embedding
    new = target.get_layer("patch_encoder").positions.embedding
    assert old.shape == new.shape
    np.testing.assert_allclose(new, resize_positions(old, (2, 8), (4, 4), 1), atol=1e-6)


def test_positions_of_rows_and_columns_are_resized_alone():
    options = {"num_classes": 3, "positions": "learned_2d", "num_registers": 2, **TINY}
    source, target = (vk.vit("Ti/4", image_size=s, **options) for s in ((8, 32), (16, 32)))
    report = vk.transfer_weights(source, target)
    assert report["resized"] == ["patch_encoder/positions/rows"]
    rows = [np.asarray(m.get_layer("patch_encoder").positions.rows) for m in (source, target)]
    np.testing.assert_allclose(rows[1], resize_matrix(2, 4, "zoom") @ rows[0], atol=1e-6)
    with pytest.raises(InputError, match="rows: missing in the source"):
        vk.transfer_weights(models()[0], target)


def test_the_patch_size_may_differ():
    source, target = models(variant="Ti/8", image_size=(16, 64))
    report = vk.transfer_weights(source, target, resize="bicubic")
    assert report["resized"] == ["patch_encoder/projection/kernel"]  # the grid is the same
    kernels = [m.get_layer("patch_encoder").projection.kernel for m in (source, target)]
    shape = [(side, side, 3, 24) for side in (4, 8)]
    expected = resize_patches(np.reshape(kernels[0], shape[0]), 8)
    np.testing.assert_allclose(np.reshape(kernels[1], shape[1]), expected, atol=1e-6)
    with pytest.raises(InputError, match="`resize` must be one of.*'lanczos'"):
        vk.transfer_weights(*models(image_size=(16, 16)), resize="lanczos")


def test_what_does_not_fit_is_named_and_nothing_is_copied():
    source, target = models(mlp_dim=32)
    before = target.get_weights()
    with pytest.raises(InputError, match=r"block_00/mlp_in/kernel: \(24, 48\) against \(24, 32\)"):
        vk.transfer_weights(source, target)
    for old, new in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(InputError, match="do not fit"):
        vk.transfer_weights(*models(classifier="gap"))


def test_positions_before_blocks_are_resized_and_relative_ones_cannot_be():
    for positions_at, path in (
        ("every_block", "positions_01/embedding"),
        ("every_block_shared", "positions/embedding"),
    ):
        options = {"num_classes": 3, "positions_at": positions_at, **TINY}
        source, target = (vk.vit("Ti/4", image_size=s, **options) for s in ((8, 32), (16, 16)))
        assert path in vk.transfer_weights(source, target)["resized"]
        name = path.partition("/")[0]
        old, new = (np.asarray(m.get_layer(name).embedding) for m in (source, target))
        np.testing.assert_allclose(new, resize_positions(old, (2, 8), (4, 4), 1), atol=1e-6)
    options = {"num_classes": 3, "positions": "relative", **TINY}
    source, target = (vk.vit("Ti/4", image_size=s, **options) for s in ((8, 32), (16, 16)))
    with pytest.raises(InputError, match=r"attention/relative: \(33, 24\) against \(33, 24\)"):
        vk.transfer_weights(source, target)


def test_other_heads_are_refused_and_another_gelu_is_said():
    source, target = models(num_heads=4)
    with pytest.raises(InputError, match="num_heads=4, vit_ti_4.* has 3"):
        vk.transfer_weights(source, target)
    with pytest.warns(UserWarning, match="trained with gelu='tanh', the model has 'exact'"):
        vk.transfer_weights(*models(gelu="exact"))


def test_a_deeper_source_is_refused():
    deeper = vk.vit("Ti/4", image_size=(8, 32), num_classes=3, **TINY | {"num_layers": 3})
    with pytest.raises(InputError, match="block_02/.*which the model does not have"):
        vk.transfer_weights(deeper, models()[1])
