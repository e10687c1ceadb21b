import keras
import numpy as np
import pytest
from conftest import check_layer

from vitkeras import layers as vkl
from vitkeras import tokens as vkt
from vitkeras.heads import MapHead

TOKENS = (2, 5, 12)


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: vkt.Patches(4), (2, 8, 12, 3)),
        (lambda: vkt.PatchEncoder((2, 3), 12), (2, 6, 20)),
        (lambda: vkt.PatchEncoder((2, 3), 12, class_token=False, dropout_rate=0.1), (2, 6, 20)),
        (lambda: vkt.PatchEncoder((2, 3), 12, True, 2), (2, 6, 20)),
        (lambda: vkt.PatchEncoder((2, 3), 12, False, 2, "none"), (2, 6, 20)),
        (lambda: vkt.PatchEncoder((2, 3), 13, True, 1, "learned_2d"), (2, 6, 20)),
        (lambda: vkt.PatchEncoder((2, 3), 12, False, 0, "sincos_2d"), (2, 6, 20)),
        (lambda: vkt.PositionEmbedding((2, 2)), TOKENS),
        (lambda: vkt.PositionEmbedding((1, 3), "learned_2d", True, 1), TOKENS),
        (lambda: MapHead(3, 24), TOKENS),
        (lambda: vkl.StochasticDepth(0.4), TOKENS),
        (lambda: vkl.LayerScale(0.1), TOKENS),
        (lambda: vkl.LayerNormalization(), TOKENS),
        (lambda: vkl.Dense(24, "gelu"), TOKENS),
        (lambda: vkl.SelfAttention(3), TOKENS),
        (lambda: vkl.SelfAttention(3, relative_positions=True), TOKENS),
        (lambda: vkl.TransformerBlock(3, 24), TOKENS),
        (lambda: vkl.TransformerBlock(3, 24, 0.1, 0.2, layer_scale=0.5, gelu="exact"), TOKENS),
        (lambda: vkl.TransformerBlock(3, 24, relative_positions=True), TOKENS),
    ],
)
def test_layer_contract(make, shape, tmp_path):
    check_layer(make, shape, tmp_path)


def test_patches_are_row_major_with_row_column_channel_inside():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = np.asarray(vkt.Patches(2)(images))
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            piece = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(patches[:, row * 3 + column], piece.reshape(2, -1))


def test_patches_refuse_what_does_not_divide():
    with pytest.raises(ValueError, match="divisible by.*height=9, width=8, patch_size=4"):
        vkt.Patches(4)(np.zeros((1, 9, 8, 3)))


def test_patch_encoder_is_equation_1():
    layer = vkt.PatchEncoder((2, 2), 5)
    patches = np.random.default_rng(0).normal(size=(3, 4, 7)).astype("float32")
    layer.build(patches.shape)
    layer.token.assign(np.full((1, 1, 5), 3.0))
    kernel, bias = layer.projection.get_weights()
    places = layer.positions.embedding.numpy()
    expected = np.concatenate([np.full((3, 1, 5), 3.0), patches @ kernel + bias], 1) + places
    np.testing.assert_allclose(layer(patches), expected, atol=1e-5)


def test_registers_come_after_the_class_token_and_have_no_position():
    layer = vkt.PatchEncoder((2, 2), 5, num_registers=2)
    patches = np.random.default_rng(0).normal(size=(3, 4, 7)).astype("float32")
    out = layer(patches)
    assert out.shape == (3, 7, 5) and layer.num_prefix_tokens == 3
    places = layer.positions.embedding.numpy()
    assert places.shape == (1, 5, 5)
    np.testing.assert_allclose(out[:, :1], np.broadcast_to(places[:, :1], (3, 1, 5)))
    np.testing.assert_allclose(out[0, 1:3], layer.registers[0])
    expected = layer.projection(patches) + places[:, 1:]
    np.testing.assert_allclose(out[:, 3:], expected, atol=1e-6)


def test_two_dimensional_positions_are_row_plus_column():
    for positions in ("learned_2d", "sincos_2d"):
        layer = vkt.PatchEncoder((3, 4), 16, positions=positions)
        patches = np.zeros((1, 12, 7), "float32")
        table = np.asarray(layer(patches))[0, 1:].reshape(3, 4, 16)
        assert len(np.unique(table.reshape(12, 16), axis=0)) == 12
        # What changes along a row is the same in every row, and the other way round.
        np.testing.assert_allclose(np.diff(np.diff(table, axis=0), axis=1), 0, atol=1e-6)


def test_sincos_is_sine_and_cosine_of_the_place():
    table = vkt.sincos_2d((2, 3), 8)[0].reshape(2, 3, 8)
    for row in range(2):
        for column in range(3):
            expected = [
                f(place * rate)
                for place in (column, row) for f in (np.sin, np.cos) for rate in (1, 1e-4)
            ]  # fmt: skip
            np.testing.assert_allclose(table[row, column], expected, atol=1e-6)
    with pytest.raises(ValueError, match="Received: hidden_dim=10"):
        vkt.sincos_2d((2, 3), 10)


def test_the_map_head_is_attention_from_its_probe():
    head = MapHead(2, 8)
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
    out = np.asarray(head(x))
    np.testing.assert_allclose(head(x[:, ::-1]), out, atol=1e-6)  # a set of tokens
    query, key, value, end = (
        [np.asarray(w) for w in layer.weights]
        for layer in (
            head.attention._query_dense, head.attention._key_dense,
            head.attention._value_dense, head.attention._output_dense,
        )
    )  # fmt: skip
    q = np.einsum("qd,dkh->qkh", np.asarray(head.probe)[0], query[0]) + query[1]
    k = np.einsum("btd,dkh->btkh", x, key[0]) + key[1]
    v = np.einsum("btd,dkh->btkh", x, value[0]) + value[1]
    scores = np.exp(np.einsum("qkh,btkh->bkqt", q, k) / np.sqrt(2))
    scores /= scores.sum(-1, keepdims=True)
    y = np.einsum("bkqt,btkh->bqkh", scores, v)
    y = np.einsum("bqkh,khd->bqd", y, end[0]) + end[1]
    z = head.mlp_out(keras.ops.gelu(head.mlp_in(head.norm(y)), approximate=True))
    np.testing.assert_allclose(out, (y + z)[:, 0], atol=1e-5)


def test_patch_encoder_refuses_another_grid():
    with pytest.raises(ValueError, match=r"6 patches, grid=\(2, 2\)"):
        vkt.PatchEncoder((2, 2), 4)(np.zeros((1, 6, 3)))


def norm(x, layer):
    gamma, beta = layer.get_weights()
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * gamma + beta


def attention(x, layer, heads, relative=None):
    kernel, bias = layer.qkv.get_weights()
    query, key, value = np.split(x @ kernel + bias, 3, axis=-1)
    side = x.shape[-1] // heads
    outputs, maps = [], []
    for k in range(heads):
        q, r, v = (a[..., k * side : (k + 1) * side] for a in (query, key, value))
        scores = q @ r.swapaxes(1, 2)
        for i, j in np.ndindex(scores.shape[1:]) if relative is not None else ():
            vector = relative[j - i + x.shape[1] - 1, k * side : (k + 1) * side]
            scores[:, i, j] += q[:, i] @ vector
        scores = np.exp(scores / np.sqrt(side))
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


@pytest.mark.filterwarnings("ignore:.*softmax over axis -1")  # of one token: Keras wonders why
def test_relative_positions_are_products_with_what_stands_for_the_distance():
    for tokens in (1, 2, 5):
        layer = vkl.SelfAttention(3, relative_positions=True)
        x = np.random.default_rng(1).normal(size=(2, tokens, 12)).astype("float32")
        layer.build(x.shape)
        table = np.random.default_rng(2).normal(size=(2 * tokens - 1, 12))
        layer.relative.assign(table)
        output, maps = attention(x, layer, 3, table)
        mine, scores = layer(x, return_attention_scores=True)
        np.testing.assert_allclose(scores, maps, atol=1e-6)
        np.testing.assert_allclose(mine, output, atol=1e-5)


def test_an_offset_of_the_scores_is_added_to_what_the_values_are_weighed_with():
    block = vkl.TransformerBlock(3, 24)
    rng = np.random.default_rng(1)
    x, offset = rng.normal(size=TOKENS).astype("float32"), rng.normal(size=(2, 3, 5, 5))
    block.build(x.shape)
    zeros = block(x, scores_offset=np.zeros((2, 3, 5, 5), "float32"))
    np.testing.assert_array_equal(zeros, block(x))
    layer = block.attention
    _, maps = attention(x, layer, 3)
    kernel, bias = layer.qkv.get_weights()
    value = np.split(x @ kernel + bias, 3, axis=-1)[2].reshape(2, 5, 3, 4)
    y = np.einsum("bkqt,btkd->bqkd", maps + offset, value).reshape(2, 5, 12)
    kernel, bias = layer.out.get_weights()
    mine, scores = layer(x, return_attention_scores=True, scores_offset=offset.astype("float32"))
    np.testing.assert_allclose(mine, y @ kernel + bias, atol=1e-5)
    np.testing.assert_allclose(scores, maps + offset, atol=1e-5)


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
