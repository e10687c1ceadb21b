"""`MapHead`: a representation of the image by attention from a learned query."""

import keras
from keras import ops

from vitkeras.dropping import register


@register
class MapHead(keras.layers.Layer):
    """Multi-head attention pooling: a learned probe attends to all tokens, an MLP follows.

    Args:
        num_heads: Number of attention heads k; must divide d.
        mlp_dim: Width f of the MLP.
    Input shape: `(b, t, d)`.
    Output shape: `(b, d)`.
    Source: Zhai et al. 2022, "Scaling Vision Transformers", section 2.3.
    """

    def __init__(self, num_heads, mlp_dim, **kwargs):
        super().__init__(**kwargs)
        self.num_heads, self.mlp_dim = int(num_heads), int(mlp_dim)

    def build(self, input_shape):
        """Makes the probe `(1, 1, d)`, the attention and the MLP."""
        policy, width = self.dtype_policy, input_shape[-1]
        one = (input_shape[0], 1, width)
        self.probe = self.add_weight(
            shape=(1, 1, width), initializer="glorot_uniform", name="probe"
        )
        self.attention = keras.layers.MultiHeadAttention(
            self.num_heads, width // self.num_heads, dtype=policy, name="attention"
        )
        self.attention.build(one, input_shape)
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=policy, name="norm")
        self.norm.build(one)
        self.mlp_in = keras.layers.Dense(self.mlp_dim, dtype=policy, name="mlp_in")
        self.mlp_in.build(one)
        self.mlp_out = keras.layers.Dense(width, dtype=policy, name="mlp_out")
        self.mlp_out.build((*one[:2], self.mlp_dim))

    def compute_output_shape(self, input_shape):
        """`(b, d)`."""
        return input_shape[0], input_shape[-1]

    def call(self, x):
        """Pools the tokens."""
        shape = (ops.shape(x)[0], 1, x.shape[-1])
        probe = ops.broadcast_to(ops.cast(self.probe, x.dtype), shape)
        y = self.attention(probe, x)  # (b, 1, d)
        z = ops.gelu(self.mlp_in(self.norm(y)), approximate=True)  # (b, 1, f)
        return (y + self.mlp_out(z))[:, 0]

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "num_heads": self.num_heads, "mlp_dim": self.mlp_dim}
