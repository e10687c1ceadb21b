import keras
import numpy as np
import pytest
from conftest import check_layer

from vitkeras import layers as vkl

TOKENS = (2, 5, 12)


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: vkl.Patches(4), (2, 8, 12, 3)),
        (lambda: vkl.PatchEncoder((2, 3), 12), (2, 6, 20)),
        (lambda: vkl.PatchEncoder((2, 3), 12, class_token=False, dropout_rate=0.1), (2, 6, 20)),
        (lambda: vkl.StochasticDepth(0.4), TOKENS),
        (lambda: vkl.LayerScale(0.1), TOKENS),
        (lambda: vkl.SelfAttention(3), TOKENS),
        (lambda: vkl.TransformerBlock(3, 24), TOKENS),
        (lambda: vkl.TransformerBlock(3, 24, 0.1, 0.2, layer_scale=0.5, gelu="exact"), TOKENS),
    ],
)
def test_layer_contract(make, shape, tmp_path):
    check_layer(make, shape, tmp_path)


def test_patches_are_row_major_with_row_column_channel_inside():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = np.asarray(vkl.Patches(2)(images))
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            piece = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(patches[:, row * 3 + column], piece.reshape(2, -1))


def test_patches_refuse_what_does_not_divide():
    with pytest.raises(ValueError, match="divisible by.*height=9, width=8, patch_size=4"):
        vkl.Patches(4)(np.zeros((1, 9, 8, 3)))


def test_patch_encoder_is_equation_1():
    layer = vkl.PatchEncoder((2, 2), 5)
    patches = np.random.default_rng(0).normal(size=(3, 4, 7)).astype("float32")
    layer.build(patches.shape)
    layer.token.assign(np.full((1, 1, 5), 3.0))
    kernel, bias = layer.projection.get_weights()
    places = layer.position_embedding.numpy()
    expected = np.concatenate([np.full((3, 1, 5), 3.0), patches @ kernel + bias], 1) + places
    np.testing.assert_allclose(layer(patches), expected, atol=1e-5)


def test_patch_encoder_refuses_another_grid():
    with pytest.raises(ValueError, match=r"6 patches, grid=\(2, 2\)"):
        vkl.PatchEncoder((2, 2), 4)(np.zeros((1, 6, 3)))


def norm(x, layer):
    gamma, beta = layer.get_weights()
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * gamma + beta


def attention(x, layer, heads):
    kernel, bias = layer.qkv.get_weights()
    query, key, value = np.split(x @ kernel + bias, 3, axis=-1)
    side = x.shape[-1] // heads
    outputs, maps = [], []
    for k in range(heads):
        q, r, v = (a[..., k * side : (k + 1) * side] for a in (query, key, value))
        scores = np.exp(q @ r.swapaxes(1, 2) / np.sqrt(side))
        maps.append(scores / scores.sum(-1, keepdims=True))
        outputs.append(maps[-1] @ v)
    kernel, bias = layer.out.get_weights()
    return np.concatenate(outputs, -1) @ kernel + bias, np.stack(maps, 1)


@pytest.mark.parametrize("gelu", ["tanh", "exact"])
def test_block_is_equations_2_and_3(gelu):
    from scipy.special import erf

    block = vkl.TransformerBlock(3, 24, gelu=gelu)
    x = np.random.default_rng(1).normal(size=TOKENS).astype("float32")
    block.build(x.shape)
    for weight in block.weights:  # no zeros and ones left that could hide a mistake
        weight.assign(weight + 0.1 * np.random.default_rng(2).normal(size=weight.shape))
    y, maps = attention(norm(x, block.attention_norm), block.attention, 3)
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
    np.testing.assert_allclose(scores, maps, atol=1e-6)
    np.testing.assert_allclose(block(x), output, atol=1e-6)


def test_dropout_stands_after_every_dense_layer_but_qkv():
    block = vkl.TransformerBlock(3, 24, 0.5)
    block.build(TOKENS)
    names = {layer.name for layer in block._flatten_layers() if "dropout" in layer.name}
    assert names == {"attention_dropout", "mlp_in_dropout", "mlp_out_dropout"}
    x = np.random.default_rng(0).normal(size=TOKENS).astype("float32")
    assert not np.allclose(block(x, training=True), block(x))


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
    layer = vkl.StochasticDepth(0.25, seed=1)
    y = np.asarray(layer(np.ones((4000, 2, 3), "float32"), training=True))
    assert set(np.unique(y.round(4))) == {0.0, np.float32(1.3333)}
    assert (y == y[:, :1, :1]).all()
    assert abs((y[:, 0, 0] == 0).mean() - 0.25) < 0.03
    np.testing.assert_array_equal(layer(y), y)
    with pytest.raises(ValueError, match="must lie in"):
        vkl.StochasticDepth(1.0)


def test_unknown_gelu_and_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="`gelu` must be one of.*'quick'"):
        vkl.TransformerBlock(3, 24, gelu="quick")
    with pytest.raises(ValueError, match="width=10, num_heads=3"):
        vkl.SelfAttention(3)(np.zeros((1, 2, 10)))


def test_qkv_is_initialised_as_three_glorot_kernels():
    layer = vkl.SelfAttention(4)
    layer.build((1, 2, 256))
    limit = np.sqrt(6 / 512)
    kernel = keras.ops.convert_to_numpy(layer.qkv.kernel)
    assert 0.99 * limit < np.abs(kernel).max() <= limit
