"""Patches, patch encoder and position embeddings."""

import numpy as np
import pytest
from helpers.layers import check_layer

from vitkeras.layers.embeddings import PatchEncoder, Patches, PositionEmbedding, sincos_2d

TOKENS = (2, 5, 12)


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: Patches(4), (2, 8, 12, 3)),
        (lambda: PatchEncoder((2, 3), 12), (2, 6, 20)),
        (lambda: PatchEncoder((2, 3), 12, class_token=False, dropout_rate=0.1), (2, 6, 20)),
        (lambda: PatchEncoder((2, 3), 12, True, 2), (2, 6, 20)),
        (lambda: PatchEncoder((2, 3), 12, False, 2, "none"), (2, 6, 20)),
        (lambda: PatchEncoder((2, 3), 13, True, 1, "learned_2d"), (2, 6, 20)),
        (lambda: PatchEncoder((2, 3), 12, False, 0, "sincos_2d"), (2, 6, 20)),
        (lambda: PositionEmbedding((2, 2)), TOKENS),
        (lambda: PositionEmbedding((1, 3), "learned_2d", True, 1), TOKENS),
    ],
)
def test_layer_contract(make, shape, tmp_path):
    check_layer(make, shape, tmp_path)


def test_patches_are_row_major_with_rows_columns_and_channels_inside():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = np.asarray(Patches(2)(images))
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            patch = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(patches[:, row * 3 + column], patch.reshape(2, -1))


def test_patches_require_divisible_sides():
    with pytest.raises(ValueError, match="height=9, width=8, patch_size=4"):
        Patches(4)(np.zeros((1, 9, 8, 3)))


def test_patch_encoder_is_equation_1():
    layer = PatchEncoder((2, 2), 5)
    patches = np.random.default_rng(0).normal(size=(3, 4, 7)).astype("float32")
    layer.build(patches.shape)
    layer.token.assign(np.full((1, 1, 5), 3.0))
    kernel, bias = layer.projection.get_weights()
    positions = layer.positions.embedding.numpy()
    expected = np.concatenate([np.full((3, 1, 5), 3.0), patches @ kernel + bias], 1) + positions
    np.testing.assert_allclose(layer(patches), expected, atol=1e-5)


def test_registers_come_after_the_class_token_and_have_no_position():
    layer = PatchEncoder((2, 2), 5, num_registers=2)
    patches = np.random.default_rng(0).normal(size=(3, 4, 7)).astype("float32")
    out = layer(patches)
    assert out.shape == (3, 7, 5) and layer.num_prefix_tokens == 3
    positions = layer.positions.embedding.numpy()
    assert positions.shape == (1, 5, 5)
    np.testing.assert_allclose(out[:, :1], np.broadcast_to(positions[:, :1], (3, 1, 5)))
    np.testing.assert_allclose(out[0, 1:3], layer.registers[0])
    expected = layer.projection(patches) + positions[:, 1:]
    np.testing.assert_allclose(out[:, 3:], expected, atol=1e-6)


def test_two_dimensional_positions_are_row_plus_column():
    for positions in ("learned_2d", "sincos_2d"):
        layer = PatchEncoder((3, 4), 16, positions=positions)
        patches = np.zeros((1, 12, 7), "float32")
        table = np.asarray(layer(patches))[0, 1:].reshape(3, 4, 16)
        assert len(np.unique(table.reshape(12, 16), axis=0)) == 12
        # A sum of a row vector and a column vector has no mixed difference.
        np.testing.assert_allclose(np.diff(np.diff(table, axis=0), axis=1), 0, atol=1e-6)


def test_sincos_is_sine_and_cosine_of_column_and_row():
    table = sincos_2d((2, 3), 8)[0].reshape(2, 3, 8)
    for row in range(2):
        for column in range(3):
            expected = [
                f(position * frequency)
                for position in (column, row)
                for f in (np.sin, np.cos)
                for frequency in (1, 1e-4)
            ]  # fmt: skip
            np.testing.assert_allclose(table[row, column], expected, atol=1e-6)
    with pytest.raises(ValueError, match="hidden_dim=10"):
        sincos_2d((2, 3), 10)


def test_patch_encoder_requires_its_grid():
    with pytest.raises(ValueError, match=r"6 patches, grid=\(2, 2\)"):
        PatchEncoder((2, 2), 4)(np.zeros((1, 6, 3)))
