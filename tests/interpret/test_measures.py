import itertools

import numpy as np
import pytest
from helpers.models import make

from vitkeras import interpret
from vitkeras.errors import InputError


def test_rollout_rows_sum_to_1():
    scores = np.random.default_rng(0).random((4, 2, 3, 7, 7))
    scores /= scores.sum(-1, keepdims=True)
    np.testing.assert_allclose(interpret.rollout(scores).sum(-1), 1, atol=1e-6)


def test_rollout_of_uniform_and_identity_attention():
    # The residual connections of 4 blocks keep 1/16 of each token; the rest is uniform.
    uniform = interpret.rollout(np.full((4, 1, 3, 7, 7), 1 / 7))[0]
    expected = np.full((7, 7), (1 - 2**-4) / 7) + np.eye(7) * 2**-4
    np.testing.assert_allclose(uniform, expected, atol=1e-7)
    assert np.ptp(uniform[0, 1:]) < 1e-7
    identity = np.tile(np.eye(5), (3, 2, 2, 1, 1))
    np.testing.assert_array_equal(interpret.rollout(identity), np.tile(np.eye(5), (2, 1, 1)))


def test_rollout_needs_a_block():
    with pytest.raises(InputError, match="`scores`"):
        interpret.rollout([])


@pytest.mark.parametrize("grid", [(1, 9), (9, 1), (3, 5), (6, 6)])
def test_distances_of_identity_and_uniform_attention(grid):
    rows, columns = grid
    n = rows * columns
    assert (interpret.mean_distances(np.eye(n)[None, None], grid, 16) == 0).all()
    offsets = itertools.product(range(-rows + 1, rows), range(-columns + 1, columns))
    expected = 16 * sum(
        (rows - abs(i)) * (columns - abs(j)) * np.hypot(i, j) for i, j in offsets
    ) / n**2  # fmt: skip
    if min(grid) == 1:
        np.testing.assert_allclose(expected, 16 * (n**2 - 1) / (3 * n))
    np.testing.assert_allclose(interpret.uniform_distance(grid, 16), expected, rtol=1e-5)
    scores = np.full((2, 3, n + 2, n + 2), 1 / (n + 2))  # with two prefix tokens
    np.testing.assert_allclose(interpret.mean_distances(scores, grid, 16), expected, rtol=1e-5)


def test_distance_of_a_query_without_attention_to_patches_is_0():
    scores = np.zeros((1, 1, 4, 4), "float32")
    scores[..., 0] = 1  # all attention to the class token
    assert interpret.mean_distances(scores, (1, 3), 8) == 0


def test_principal_components_are_orthonormal_and_restore_the_filters():
    filters = interpret.first_filters(make())  # (24, 8, 8, 3)
    found = interpret.principal_components(filters)
    assert all(array.dtype == "float32" for array in found)
    restored = found.mean + np.tensordot(found.coordinates, found.components, 1)
    np.testing.assert_allclose(restored, filters, atol=1e-5)
    flat = found.components[:-1].reshape(23, -1)  # centering leaves rank 23
    np.testing.assert_allclose(flat @ flat.T, np.eye(23), atol=1e-5)
    ratio = found.explained_variance_ratio
    assert (np.diff(ratio) <= 0).all()
    np.testing.assert_allclose(ratio.sum(), 1, rtol=1e-5)
    variances = ratio * filters.var(0).sum()
    np.testing.assert_allclose(found.coordinates.var(0), variances, atol=1e-5)
    largest = np.take_along_axis(flat, np.abs(flat).argmax(1)[:, None], 1)
    assert (largest > 0).all()
