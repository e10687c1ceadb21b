"""What layers do on a TPU is the same as elsewhere; compiled by XLA for this machine's CPU."""

import numpy as np
import pytest
import tensorflow as tf

from vitkeras import tpu
from vitkeras.layers import TransformerBlock


@pytest.mark.parametrize("piece_bytes", [1, 2 * 16 * 128 * 2 * 8, 2**30])
@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("mixed_bfloat16", 3e-2)])
def test_a_block_on_a_tpu_is_the_same(monkeypatch, piece_bytes, dtype, bound):
    monkeypatch.setattr(tpu, "PIECE_BYTES", piece_bytes)
    rng = np.random.default_rng(0)
    block = TransformerBlock(num_heads=2, mlp_dim=48, dtype=dtype)
    x = tf.constant(rng.normal(size=(19, 13, 24)).astype("float32"))
    block.build(x.shape)
    for weight in block.weights:
        weight.assign(weight + 0.1 * rng.normal(size=weight.shape))
    ways = tf.constant(rng.normal(size=x.shape).astype("float32"))

    @tf.function(jit_compile=True)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = block(x)
            loss = tf.reduce_sum(tf.cast(y, "float32") * ways)
        return y, *tape.gradient(loss, [x, *(w.value for w in block.trainable_variables)])

    expected = step(x)
    asked = []
    monkeypatch.setattr(tpu, "_attend", lambda *a, f=tpu._attend: asked.append(1) or f(*a))
    with tpu.as_target():
        found = tf.function(step.python_function, jit_compile=True)(x)
    assert asked and not tpu.is_target()
    for one, other in zip(found, expected, strict=True):
        one, other = (np.asarray(tf.cast(y, "float32")) for y in (one, other))
        np.testing.assert_allclose(one, other, atol=bound * np.abs(other).max(), rtol=0)


def test_how_many_images_a_tpu_attends_to_at_once():
    assert tpu.images_at_once(64, heads=12, tokens=197) == 16
    assert tpu.images_at_once(4, heads=12, tokens=197) == 4
    assert tpu.images_at_once(64, heads=12, tokens=577) == 4  # at most 16 pieces
    assert tpu.images_at_once(8, heads=16, tokens=10_001) == 1
    for images in (130, 200, 240, 300, 4096):
        assert -(-images // tpu.images_at_once(images, heads=16, tokens=577)) <= tpu.MOST_PIECES
    assert tpu.images_at_once(None, heads=12, tokens=197) is None
    assert tpu.images_at_once(0, heads=12, tokens=197) is None


def test_on_the_host_nothing_is_for_a_tpu():
    with tpu.as_target():
        assert not tpu.is_target()
        assert not tf.function(tpu.is_target)()
        found = []
        tf.function(lambda: found.append(tpu.is_target()), jit_compile=True)()
        inner = tf.function(lambda: found.append(tpu.is_target()))
        tf.function(inner, jit_compile=True)()
    assert found == [True, True]


def test_no_one_else_gets_the_form_for_a_tpu():
    found = []
    tf.function(lambda: found.append(tpu.is_target()), jit_compile=True)()
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        tf.function(lambda: found.append(tpu.is_target()), jit_compile=True)()
    assert found == [False, False]
