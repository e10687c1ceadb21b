"""`MapHead`: attention pooling with a learned query."""

import keras
from keras import ops

from vitkeras.arguments import check_int
from vitkeras.layers.regularization import register


@register
class MapHead(keras.layers.Layer):
    """Multi-head attention pooling: a learned probe attends to all tokens, followed by an MLP.

    Args:
        num_heads: Number of attention heads k; must divide d.
        mlp_dim: Width f of the MLP.
    Input shape: `(b, t, d)`.
    Output shape: `(b, d)`.
    Source: Zhai et al. 2022, "Scaling Vision Transformers", section 2.3.
    """

    def __init__(self, num_heads: int, mlp_dim: int, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = check_int("num_heads", num_heads)
        self.mlp_dim = check_int("mlp_dim", mlp_dim)

    def build(self, input_shape):
        policy, width = self.dtype_policy, input_shape[-1]
        query_shape = (input_shape[0], 1, width)
        self.probe = self.add_weight(
            shape=(1, 1, width), initializer="glorot_uniform", name="probe"
        )
        self.attention = keras.layers.MultiHeadAttention(
            self.num_heads, width // self.num_heads, dtype=policy, name="attention"
        )
        self.attention.build(query_shape, input_shape)
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=policy, name="norm")
        self.norm.build(query_shape)
        self.mlp_in = keras.layers.Dense(self.mlp_dim, dtype=policy, name="mlp_in")
        self.mlp_in.build(query_shape)
        self.mlp_out = keras.layers.Dense(width, dtype=policy, name="mlp_out")
        self.mlp_out.build((*query_shape[:2], self.mlp_dim))

    def compute_output_shape(self, input_shape):
        return input_shape[0], input_shape[-1]

    def call(self, x):
        shape = (ops.shape(x)[0], 1, x.shape[-1])
        probe = ops.broadcast_to(ops.cast(self.probe, x.dtype), shape)
        y = self.attention(probe, x)  # (b, 1, d)
        z = ops.gelu(self.mlp_in(self.norm(y)), approximate=True)  # (b, 1, f)
        return (y + self.mlp_out(z))[:, 0]

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads, "mlp_dim": self.mlp_dim}
