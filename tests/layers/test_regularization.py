"""Stochastic depth and dropout."""

import numpy as np
import pytest
from helpers.layers import check_layer

from vitkeras.layers.regularization import Dropout, StochasticDepth

SHAPE = (2, 5, 12)


@pytest.mark.parametrize("make", [lambda: StochasticDepth(0.4), lambda: Dropout(0.4)])
def test_layer_contract(make, tmp_path):
    check_layer(make, SHAPE, tmp_path)


def test_stochastic_depth_drops_complete_examples_and_keeps_the_mean():
    layer = StochasticDepth(0.25, seed=1)
    y = np.asarray(layer(np.ones((4000, 2, 3), "float32"), training=True))
    assert set(np.unique(y.round(4))) == {0.0, np.float32(1.3333)}
    assert (y == y[:, :1, :1]).all()
    assert abs((y[:, 0, 0] == 0).mean() - 0.25) < 0.03
    np.testing.assert_array_equal(layer(y), y)
    with pytest.raises(ValueError, match="rate=1.0"):
        StochasticDepth(1.0)
