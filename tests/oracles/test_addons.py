"""Comparison with TensorFlow Addons, whose last nightly build needs Python 3.11."""

import math
import sys
import warnings

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import TINY

import vitkeras as vk
from vitkeras.data.augmentation import affine_transform

pytestmark = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="the last nightly of TensorFlow Addons needs Python 3.11"
)


@pytest.fixture(scope="module")
def tfa():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it is archived
        tensorflow_addons = pytest.importorskip(
            "tensorflow_addons", reason="the extra `addons` is not installed; see .ci/run"
        )

    return tensorflow_addons


def random_image(height, width):
    rng = np.random.default_rng(0)
    return tf.constant(rng.uniform(-1, 1, (height, width, 3)), tf.float32)


@pytest.mark.parametrize("degrees", [-15, 4, 90])
def test_rotation_equals_theirs(tfa, degrees):
    image, angle = random_image(20, 31), math.radians(degrees)
    expected = tfa.image.rotate(image, angle, interpolation="bilinear", fill_value=0.0)
    np.testing.assert_allclose(affine_transform(image, angle=angle), expected, atol=1e-4)


def test_translation_equals_theirs(tfa):
    image = random_image(20, 32)
    # Their offsets (x, y) move the image; those of vitkeras (y, x) move the sampled window.
    expected = tfa.image.translate(image, [-4.0, 2.5], interpolation="bilinear", fill_value=0.0)
    translated = affine_transform(image, translation=(-2.5 / 20, 4 / 32))
    np.testing.assert_allclose(translated, expected, atol=1e-5)


@pytest.mark.parametrize("gelu", ["tanh", "exact"])
def test_the_block_uses_the_gelu_of_its_config(tfa, gelu):
    model = vk.vit("Ti/4", image_size=8, num_classes=3, gelu=gelu, **TINY)
    block = model.get_layer("block_01")
    x = np.random.default_rng(0).normal(size=(2, 5, 24)).astype("float32") * 3
    after_attention = x + block.attention(block.attention_norm(x))
    hidden = block.mlp_norm(after_attention) @ block.mlp_in.kernel + block.mlp_in.bias
    activated = tfa.activations.gelu(hidden, approximate=gelu == "tanh")
    expected = after_attention + block.mlp_out(activated)
    np.testing.assert_allclose(block(x), expected, atol=1e-5)
