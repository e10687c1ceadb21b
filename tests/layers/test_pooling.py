"""Attention pooling."""

import keras
import numpy as np
from helpers.layers import check_layer

from vitkeras.layers.pooling import MapHead


def test_layer_contract(tmp_path):
    check_layer(lambda: MapHead(3, 24), (2, 5, 12), tmp_path)


def test_the_map_head_is_attention_from_its_probe():
    head = MapHead(2, 8)
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
    out = np.asarray(head(x))
    np.testing.assert_allclose(head(x[:, ::-1]), out, atol=1e-6)  # a set of tokens
    query, key, value, output = (
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
    y = np.einsum("bqkh,khd->bqd", y, output[0]) + output[1]
    z = head.mlp_out(keras.ops.gelu(head.mlp_in(head.norm(y)), approximate=True))
    np.testing.assert_allclose(out, (y + z)[:, 0], atol=1e-5)
