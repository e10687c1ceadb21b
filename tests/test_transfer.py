import numpy as np
import pytest
from conftest import TINY

import vitkeras as vk
from vitkeras.errors import InputError
from vitkeras.positions import resize_positions


def test_the_same_grid_is_the_identity():
    places = np.random.default_rng(0).normal(size=(1, 7, 4)).astype("float32")
    np.testing.assert_array_equal(resize_positions(places, (2, 3), (2, 3), 1), places)


def test_constants_and_the_prefix_stay():
    places = np.concatenate([np.zeros((1, 2, 4)), np.full((1, 6, 4), 3.5)], axis=1)
    resized = resize_positions(places, (2, 3), (5, 4), num_prefix_tokens=2)
    assert resized.shape == (1, 22, 4)
    np.testing.assert_allclose(resized[:, 2:], 3.5)
    assert not resized[:, :2].any()


@pytest.mark.parametrize("old, new", [((4, 4), (7, 7)), ((3, 5), (6, 2)), ((6, 4), (3, 9))])
def test_it_is_scipys_zoom(old, new):
    from scipy.ndimage import zoom

    places = np.random.default_rng(0).normal(size=(1, old[0] * old[1], 3))
    factors = (new[0] / old[0], new[1] / old[1], 1)
    expected = zoom(places.reshape(*old, 3), factors, order=1).reshape(1, -1, 3)
    np.testing.assert_allclose(resize_positions(places, old, new), expected, atol=1e-12)


def test_a_wrong_grid_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 9, 4\), grid \(2, 3\), 1 prefix"):
        resize_positions(np.zeros((1, 9, 4)), (2, 3), (4, 4), 1)


def models(**target):
    source = vk.vit("Ti/4", image_size=(8, 32), num_classes=3, **TINY)
    for weight in source.weights:
        weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    return source, vk.vit("Ti/4", **{"image_size": (8, 32), "num_classes": 3, **TINY, **target})


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
    assert report["resized"] == ["patch_encoder/position_embedding"]
    old = source.get_layer("patch_encoder").position_embedding
    new = target.get_layer("patch_encoder").position_embedding
    assert old.shape == new.shape
    np.testing.assert_allclose(new, resize_positions(old, (2, 8), (4, 4), 1), atol=1e-6)


def test_what_does_not_fit_is_named_and_nothing_is_copied():
    source, target = models(mlp_dim=32)
    before = target.get_weights()
    with pytest.raises(InputError, match=r"block_00/mlp_in/kernel: \(24, 48\) against \(24, 32\)"):
        vk.transfer_weights(source, target)
    for old, new in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(InputError, match="do not fit"):
        vk.transfer_weights(*models(classifier="gap"))
