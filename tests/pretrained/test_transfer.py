"""`transfer_weights`."""

import numpy as np
import pytest
from helpers.models import TINY

import vitkeras as vk
from vitkeras.errors import InputError
from vitkeras.pretrained.resizing import resize_matrix, resize_patch_kernel, resize_positions


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
    assert sorted(report["initialized"]) == report["unused"] == ["head/bias", "head/kernel"]
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
    with pytest.raises(InputError, match="positions='learned_2d' in the model"):
        vk.transfer_weights(models()[0], target)


def test_the_patch_size_may_differ():
    source, target = models(variant="Ti/8", image_size=(16, 64))
    report = vk.transfer_weights(source, target, resize="bicubic")
    assert report["resized"] == ["patch_encoder/projection/kernel"]  # the grid is the same
    kernels = [m.get_layer("patch_encoder").projection.kernel for m in (source, target)]
    shape = [(side, side, 3, 24) for side in (4, 8)]
    expected = resize_patch_kernel(np.reshape(kernels[0], shape[0]), 8)
    np.testing.assert_allclose(np.reshape(kernels[1], shape[1]), expected, atol=1e-6)
    with pytest.raises(InputError, match="`resize` must be one of.*'lanczos'"):
        vk.transfer_weights(*models(image_size=(16, 16)), resize="lanczos")


def test_what_does_not_fit_is_named_and_nothing_is_copied():
    source, target = models(mlp_dim=32)
    before = target.get_weights()
    with pytest.raises(InputError, match="mlp_dim=32 in the model, 48 in"):
        vk.transfer_weights(source, target)
    for old, new in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(InputError, match="class_token=False in the model"):
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
    with pytest.raises(InputError, match=r"grid=\(4, 4\) in the model, \(2, 8\) in"):
        vk.transfer_weights(source, target)


def test_other_heads_are_refused_and_another_gelu_warns():
    source, target = models(num_heads=4)
    with pytest.raises(InputError, match="num_heads=4 in the model, 3 in vit_ti_4"):
        vk.transfer_weights(source, target)
    with pytest.warns(UserWarning, match="gelu='tanh', the model has 'exact'"):
        vk.transfer_weights(*models(gelu="exact"))


def test_a_deeper_source_is_refused():
    deeper = vk.vit("Ti/4", image_size=(8, 32), num_classes=3, **TINY | {"num_layers": 3})
    with pytest.raises(InputError, match="num_layers=2 in the model, 3 in vit_ti_4"):
        vk.transfer_weights(deeper, models()[1])
