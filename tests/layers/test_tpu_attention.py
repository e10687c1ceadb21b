"""Layers compute the same in their TPU form; XLA compiles both for the CPU of this machine."""

import numpy as np
import pytest
import tensorflow as tf

from vitkeras.layers import tpu_attention
from vitkeras.layers.transformer import TransformerBlock


@pytest.mark.parametrize(
    "chunk_bytes", [1, *(pytest.param(b, marks=pytest.mark.slow) for b in (2**16, 2**30))]
)
@pytest.mark.parametrize(
    "dtype, tolerance",
    [("float32", 1e-5), pytest.param("mixed_bfloat16", 3e-2, marks=pytest.mark.slow)],
)
def test_a_block_computes_the_same_on_a_tpu(monkeypatch, chunk_bytes, dtype, tolerance):
    monkeypatch.setattr(tpu_attention, "CHUNK_BYTES", chunk_bytes)
    rng = np.random.default_rng(0)
    block = TransformerBlock(num_heads=2, mlp_dim=48, dtype=dtype)
    x = tf.constant(rng.normal(size=(19, 13, 24)).astype("float32"))
    block.build(x.shape)
    for weight in block.weights:
        weight.assign(weight + 0.1 * rng.normal(size=weight.shape))
    upstream = tf.constant(rng.normal(size=x.shape).astype("float32"))

    @tf.function(jit_compile=True)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = block(x)
            loss = tf.reduce_sum(tf.cast(y, "float32") * upstream)
        return y, *tape.gradient(loss, [x, *(w.value for w in block.trainable_variables)])

    expected = step(x)
    calls, attend = [], tpu_attention._attend
    monkeypatch.setattr(tpu_attention, "_attend", lambda *a: calls.append(1) or attend(*a))
    with tpu_attention.as_target():
        found = tf.function(step.python_function, jit_compile=True)(x)
    assert calls and not tpu_attention.is_target()
    for actual, other in zip(found, expected, strict=True):
        actual, other = (np.asarray(tf.cast(y, "float32")) for y in (actual, other))
        np.testing.assert_allclose(actual, other, atol=tolerance * np.abs(other).max(), rtol=0)


def test_chunk_sizes():
    chunk_size, limit = tpu_attention.chunk_size, tpu_attention.MAX_CHUNKS
    assert chunk_size(64, heads=12, tokens=197) == 16
    assert chunk_size(4, heads=12, tokens=197) == 4
    assert chunk_size(64, heads=12, tokens=577) == 4  # at most 16 chunks
    assert chunk_size(8, heads=16, tokens=10_001) == 1
    for images in (130, 200, 240, 300, 4096):
        assert -(-images // chunk_size(images, heads=16, tokens=577)) <= limit
    assert chunk_size(None, heads=12, tokens=197) is None
    assert chunk_size(0, heads=12, tokens=197) is None


def test_the_host_is_no_target():
    is_target, found = tpu_attention.is_target, []
    with tpu_attention.as_target():
        assert not is_target()
        assert not tf.function(is_target)()
        tf.function(lambda: found.append(is_target()), jit_compile=True)()
        inner = tf.function(lambda: found.append(is_target()))
        tf.function(inner, jit_compile=True)()
    assert found == [True, True]


def test_other_devices_are_no_target():
    is_target, found = tpu_attention.is_target, []
    tf.function(lambda: found.append(is_target()), jit_compile=True)()
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        tf.function(lambda: found.append(is_target()), jit_compile=True)()
    assert found == [False, False]
