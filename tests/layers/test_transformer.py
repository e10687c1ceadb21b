"""Attention, MLP and the encoder block, compared with NumPy."""

import keras
import numpy as np
import pytest
from helpers.layers import check_layer
from scipy.special import erf

from vitkeras.layers.transformer import (
    Dense,
    LayerNormalization,
    LayerScale,
    SelfAttention,
    TransformerBlock,
)

TOKENS = (2, 5, 12)


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: LayerScale(0.1), TOKENS),
        (lambda: LayerNormalization(), TOKENS),
        (lambda: Dense(24, "gelu"), TOKENS),
        (lambda: SelfAttention(3), TOKENS),
        (lambda: SelfAttention(3, relative_positions=True), TOKENS),
        (lambda: TransformerBlock(3, 24), TOKENS),
        (lambda: TransformerBlock(3, 24, 0.1, 0.2, layer_scale=0.5, gelu="exact"), TOKENS),
        (lambda: TransformerBlock(3, 24, relative_positions=True), TOKENS),
    ],
)
def test_layer_contract(make, shape, tmp_path):
    check_layer(make, shape, tmp_path)


def norm(x, layer):
    """Computes LayerNorm in NumPy."""
    gamma, beta = layer.get_weights()
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * gamma + beta


def attention(x, layer, heads, relative=None):
    """Computes self-attention in NumPy; returns output and scores (b, k, t, t)."""
    kernel, bias = layer.qkv.get_weights()
    query, key, value = np.split(x @ kernel + bias, 3, axis=-1)
    head_dim = x.shape[-1] // heads
    outputs, all_scores = [], []
    for k in range(heads):
        q, r, v = (a[..., k * head_dim : (k + 1) * head_dim] for a in (query, key, value))
        scores = q @ r.swapaxes(1, 2)
        for i, j in np.ndindex(scores.shape[1:]) if relative is not None else ():
            vector = relative[j - i + x.shape[1] - 1, k * head_dim : (k + 1) * head_dim]
            scores[:, i, j] += q[:, i] @ vector
        scores = np.exp(scores / np.sqrt(head_dim))
        all_scores.append(scores / scores.sum(-1, keepdims=True))
        outputs.append(all_scores[-1] @ v)
    kernel, bias = layer.out.get_weights()
    return np.concatenate(outputs, -1) @ kernel + bias, np.stack(all_scores, 1)


@pytest.mark.parametrize("gelu", ["tanh", "exact"])
def test_block_is_equations_2_and_3(gelu):
    block = TransformerBlock(3, 24, gelu=gelu)
    x = np.random.default_rng(1).normal(size=TOKENS).astype("float32")
    block.build(x.shape)
    for weight in block.weights:  # no zeros and ones, which could hide an error
        weight.assign(weight + 0.1 * np.random.default_rng(2).normal(size=weight.shape))
    y, all_scores = attention(norm(x, block.attention_norm), block.attention, 3)
    z = x + y
    kernel, bias = block.mlp_in.get_weights()
    h = norm(z, block.mlp_norm) @ kernel + bias
    if gelu == "tanh":
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    else:
        h = 0.5 * h * (1 + erf(h / np.sqrt(2)))
    kernel, bias = block.mlp_out.get_weights()
    output, scores = block(x, return_attention_scores=True)
    np.testing.assert_allclose(output, z + h @ kernel + bias, atol=3e-6)
    np.testing.assert_allclose(scores, all_scores, atol=1e-6)
    np.testing.assert_allclose(block(x), output, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*softmax over axis -1")  # of a single token
def test_relative_positions_are_products_with_the_vector_of_the_distance():
    for tokens in (1, 2, 5):
        layer = SelfAttention(3, relative_positions=True)
        x = np.random.default_rng(1).normal(size=(2, tokens, 12)).astype("float32")
        layer.build(x.shape)
        table = np.random.default_rng(2).normal(size=(2 * tokens - 1, 12))
        layer.relative.assign(table)
        output, all_scores = attention(x, layer, 3, table)
        actual, scores = layer(x, return_attention_scores=True)
        np.testing.assert_allclose(scores, all_scores, atol=1e-6)
        np.testing.assert_allclose(actual, output, atol=1e-5)


def test_scores_offset_is_added_to_the_scores():
    block = TransformerBlock(3, 24)
    rng = np.random.default_rng(1)
    x, offset = rng.normal(size=TOKENS).astype("float32"), rng.normal(size=(2, 3, 5, 5))
    block.build(x.shape)
    zeros = block(x, scores_offset=np.zeros((2, 3, 5, 5), "float32"))
    np.testing.assert_array_equal(zeros, block(x))
    layer = block.attention
    _, all_scores = attention(x, layer, 3)
    kernel, bias = layer.qkv.get_weights()
    value = np.split(x @ kernel + bias, 3, axis=-1)[2].reshape(2, 5, 3, 4)
    y = np.einsum("bkqt,btkd->bqkd", all_scores + offset, value).reshape(2, 5, 12)
    kernel, bias = layer.out.get_weights()
    actual, scores = layer(x, return_attention_scores=True, scores_offset=offset.astype("float32"))
    np.testing.assert_allclose(actual, y @ kernel + bias, atol=1e-5)
    np.testing.assert_allclose(scores, all_scores + offset, atol=1e-5)


def test_dropout_follows_every_dense_layer_except_qkv():
    block = TransformerBlock(3, 24, 0.5)
    block.build(TOKENS)
    names = {layer.name for layer in block._flatten_layers() if "dropout" in layer.name}
    assert names == {"attention_dropout", "mlp_in_dropout", "mlp_out_dropout"}
    x = np.random.default_rng(0).normal(size=TOKENS).astype("float32")
    assert not np.allclose(block(x, training=True), block(x))


def test_gelu_and_num_heads_are_checked():
    with pytest.raises(ValueError, match="`gelu` must be one of.*'quick'"):
        TransformerBlock(3, 24, gelu="quick")
    with pytest.raises(ValueError, match="width=10, num_heads=3"):
        SelfAttention(3)(np.zeros((1, 2, 10)))


def test_qkv_is_initialized_as_three_glorot_kernels():
    layer = SelfAttention(4)
    layer.build((1, 2, 256))
    limit = np.sqrt(6 / 512)
    kernel = keras.ops.convert_to_numpy(layer.qkv.kernel)
    assert 0.99 * limit < np.abs(kernel).max() <= limit
