"""The ResNet stem of the hybrids."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import check_layer

import vitkeras as vk
from vitkeras.layers.hybrid_stem import Bottleneck, HybridStem, StdConv2D


def enable_branches(layer):
    """Sets the gammas that are initialized with 0, so that a step changes every weight."""
    for unit in layer.units if isinstance(layer, HybridStem) else [layer]:
        unit.norm3.gamma.assign(np.ones(unit.norm3.gamma.shape))


@pytest.mark.parametrize("strides, channels", [(1, 128), (1, 64), (2, 128)])
def test_bottleneck(strides, channels, tmp_path):
    check_layer(lambda: Bottleneck(32, strides), (2, 5, 6, channels), tmp_path, enable_branches)


def test_stem(tmp_path):
    check_layer(lambda: HybridStem((1, 2), width=32), (2, 16, 24, 3), tmp_path, enable_branches)
    assert HybridStem(()).stride == 4 and HybridStem((3, 4, 9)).stride == 16
    assert HybridStem((3, 4, 9)).compute_output_shape((None, 224, 96, 3)) == (None, 14, 6, 1024)


def test_the_kernel_is_standardized():
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 5)).astype("float32")
    conv = StdConv2D(4, 3, 2)
    y = conv(x)
    kernel = np.asarray(conv.kernel, "float64")
    flat = kernel.reshape(-1, 4)
    flat = (flat - flat.mean(0)) / (flat.std(0) + 1e-5)
    expected = tf.nn.conv2d(x.astype("float64"), flat.reshape(kernel.shape), 2, "SAME")
    np.testing.assert_allclose(y, expected, atol=1e-5)
    conv.kernel.assign(kernel * 7 + 3)  # scale and mean are removed
    np.testing.assert_allclose(conv(x), y, rtol=1e-3, atol=1e-3)  # up to epsilon


def test_the_kernel_is_standardized_in_float32():
    conv, mixed = StdConv2D(4, 3), StdConv2D(4, 3, dtype="mixed_bfloat16")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 5)).astype("float32")
    conv(x), mixed(x)
    # Rounded to bfloat16, a kernel around 1000 would be constant.
    for layer in (conv, mixed):
        layer.kernel.assign(1000 + np.random.default_rng(1).normal(size=(3, 3, 5, 4)))
    assert mixed(x).dtype == "bfloat16"
    np.testing.assert_allclose(np.asarray(mixed(x), "float32"), conv(x), atol=0.3)


def test_a_new_unit_is_its_shortcut():
    x = np.abs(np.random.default_rng(0).normal(size=(2, 6, 6, 128))).astype("float32")
    np.testing.assert_allclose(Bottleneck(32)(x), x)
    unit = Bottleneck(32, 2)
    expected = np.maximum(unit(x), 0)
    np.testing.assert_allclose(unit.norm_proj(unit.conv_proj(x)).numpy().clip(0), expected)


@pytest.mark.parametrize("variant, side, channels", [
    ("R+Ti/16", 8, 64), ("R26+S/32", 1, 2048), ("R50+B/16", 1, 1024), ("R50+L/16", 1, 1024),
    ("R50+B/32", 1, 2048), ("R50+L/32", 1, 2048),
])  # fmt: skip
def test_hybrids_have_the_stride_of_their_name(variant, side, channels):
    with keras.StatelessScope(initialize_variables=False):
        model = vk.vit(variant, image_size=(64, 96), num_classes=2, num_layers=1)
    stride = 32 if variant == "R+Ti/16" else int(variant[-2:])
    encoder = model.get_layer("patch_encoder")
    assert encoder.grid == (64 // stride, 96 // stride)
    assert model.get_layer("patches").output.shape[-1] == side * side * channels
    assert [layer.name for layer in model.layers][:5] == [
        "images", "rescaling", "stem", "patches", "patch_encoder",
    ]  # fmt: skip
