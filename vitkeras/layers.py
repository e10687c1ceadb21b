"""The layers of a Vision Transformer's encoder.

Letters in shapes, here and elsewhere: b batch, h w height and width, c channels, p patch side,
n patches, t tokens (n, or n + 1 with a class token, and registers), d width, k heads, f MLP width.
"""

import contextlib
import functools

import keras
from keras import ops

from vitkeras import tpu
from vitkeras.dropping import Dropout, StochasticDepth, register

GELUS = ("tanh", "exact")


@register
class LayerScale(keras.layers.Layer):
    """Multiplies each channel of a residual branch by a learned number.

    Args:
        initial_value: Where these numbers start.
    Input shape: `(b, t, d)`.
    Output shape: as the input.
    Source: Touvron et al. 2021, "Going deeper with Image Transformers".
    """

    def __init__(self, initial_value, **kwargs):
        super().__init__(**kwargs)
        self.initial_value = float(initial_value)

    def build(self, input_shape):
        """Makes gamma `(d,)`."""
        self.gamma = self.add_weight(
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_value),
            name="gamma",
        )

    def compute_output_shape(self, input_shape):
        """As the input."""
        return input_shape

    def call(self, x):
        """Scales the channels."""
        return x * ops.cast(self.gamma, x.dtype)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "initial_value": self.initial_value}


@register
class LayerNormalization(keras.layers.LayerNormalization):
    """Keras's over the last axis, in fewer passes: (x - mean) / deviation * gamma + beta.

    Statistics are taken in float32 at least, as Keras does.
    """

    def call(self, x):
        """Normalizes each token."""
        dtype = keras.backend.result_type(x.dtype, "float32")
        x = ops.cast(x, dtype)
        mean, variance = ops.moments(x, -1, keepdims=True)
        x = (x - mean) * ops.rsqrt(variance + self.epsilon)
        x = x * ops.cast(self.gamma, dtype) + ops.cast(self.beta, dtype)
        return ops.cast(x, self.compute_dtype)


@register
class Dense(keras.layers.Dense):
    """Keras's for tokens, in the form that is fastest where it runs.

    Input shape: `(b, t, d)`.
    Output shape: `(b, t, units)`.
    """

    def call(self, x, training=None):
        """Multiplies, adds the bias and applies the activation."""
        if tpu.is_target():
            # Tokens stay apart: a TPU's tiles of 8 rows make a copy of what is put together.
            kernel = ops.cast(self.kernel, x.dtype)
            x = _einsum("btd,df->btf", x, kernel)
            x = x + ops.cast(self.bias, x.dtype) if self.use_bias else x
            return self.activation(x)
        # A matrix: TensorFlow then adds the bias inside the product, and without a gradient the
        # GELU too.
        tokens, width = x.shape[1:]
        x = super().call(ops.reshape(x, (-1, width)), training=training)
        return ops.reshape(x, (-1, tokens, self.units))


def _einsum(form, *operands):
    """Calls TensorFlow's own: Keras's makes matrices of some."""
    import tensorflow as tf

    return tf.einsum(form, *operands)


@register
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention with one product for queries, keys and values.

    With relative positions each query meets, beside a key, a learned vector for how far that key's
    token stands from its own in the sequence; both products are summed before the softmax.

    Args:
        num_heads: Number of heads k; must divide d.
        relative_positions: Whether there are such vectors.
    Input shape: `(b, t, d)`.
    Output shape: `(b, t, d)`; with `return_attention_scores=True` also `(b, k, t, t)`, whose
        rows sum to 1. What is given as `scores_offset`, of that shape, is added to them: zeros
        change nothing, and the gradient for them is that for the scores.
    Raises:
        ValueError: If d is not divisible by `num_heads`.
    Source: Dosovitskiy et al. 2021, appendices A and D.4.
    """

    def __init__(self, num_heads, relative_positions=False, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = int(num_heads)
        self.relative_positions = bool(relative_positions)

    def build(self, input_shape):
        """Makes `qkv`, whose columns are all queries, then keys, then values, and `out`.

        And `relative` `(2t - 1, d)`: row i is for a key t - 1 - i tokens in front of its query.
        """
        width = input_shape[-1]
        if width % self.num_heads:
            raise ValueError(
                "The width must be divisible by `num_heads`. "
                f"Received: width={width}, num_heads={self.num_heads}."
            )
        # Scale 2 makes each third what Glorot uniform would make of a (d, d) kernel of its own.
        glorot = keras.initializers.VarianceScaling(2.0, "fan_avg", "uniform")
        self.qkv = Dense(3 * width, kernel_initializer=glorot, dtype=self.dtype_policy, name="qkv")
        self.qkv.build(input_shape)
        self.out = Dense(width, dtype=self.dtype_policy, name="out")
        self.out.build(input_shape)
        if self.relative_positions:
            self.relative = self.add_weight(
                shape=(2 * input_shape[1] - 1, width),
                initializer=keras.initializers.RandomNormal(stddev=0.02),
                name="relative",
            )

    def compute_output_shape(self, input_shape):
        """As the input."""
        return input_shape

    def call(self, x, return_attention_scores=False, scores_offset=None):
        """Attends."""
        tokens, width = x.shape[1:]
        head_dim = width // self.num_heads
        if tpu.is_target() and not (
            self.relative_positions or return_attention_scores or scores_offset is not None
        ):
            return self._call_for_tpu(x, head_dim)
        x = ops.reshape(self.qkv(x), (-1, tokens, 3, self.num_heads, head_dim))
        query, key, value = ops.unstack(ops.transpose(x, (2, 0, 3, 1, 4)))  # (b, k, t, d/k)
        query = query * head_dim**-0.5
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))  # (b, k, t, t)
        if self.relative_positions:
            scores = scores + self._relative_scores(query)
        scores = ops.softmax(scores)
        if scores_offset is not None:
            scores = scores + scores_offset
        x = ops.transpose(ops.matmul(scores, value), (0, 2, 1, 3))  # (b, t, k, d/k)
        x = self.out(ops.reshape(x, (-1, tokens, width)))
        return (x, scores) if return_attention_scores else x

    def _call_for_tpu(self, x, head_dim):
        # No tensor is turned: the products name the axes of their results.
        operands = []
        for piece in tpu.pieces(x, self.num_heads):
            # Cast for each piece, so that their gradients are added in float32.
            shape = (-1, 3, self.num_heads, head_dim)
            kernel = ops.reshape(ops.cast(self.qkv.kernel, x.dtype), shape)  # (d, 3, k, d/k)
            bias = ops.reshape(ops.cast(self.qkv.bias, x.dtype), (*shape[1:], 1))
            query, key, value = (
                _einsum("btd,dkh->bkht", piece, kernel[:, i]) + bias[i] for i in range(3)
            )
            operands.append((query * head_dim**-0.5, key, value))
        x = ops.concatenate(tpu.attend(operands))  # (b, k, d/k, t)
        kernel = ops.reshape(ops.cast(self.out.kernel, x.dtype), (self.num_heads, head_dim, -1))
        return _einsum("bkht,khd->btd", x, kernel) + ops.cast(self.out.bias, x.dtype)

    def _relative_scores(self, query):
        """Returns `(b, k, t, t)` from queries `(b, k, t, d/k)`."""
        tokens, head_dim = query.shape[2:]
        keys = ops.reshape(self.relative, (-1, self.num_heads, head_dim))
        keys = ops.transpose(ops.cast(keys, query.dtype), (1, 2, 0))  # (k, d/k, 2t-1)
        scores = ops.matmul(query, keys)  # (b, k, t, 2t-1)
        if tokens == 1:
            return scores
        # Row i, column j has to be that of place t-1 - i + j. Read as one row, with the first t-1
        # left out, rows of 2t-2 begin just there.
        line = ops.reshape(scores, (-1, self.num_heads, tokens * (2 * tokens - 1)))
        line = line[:, :, tokens - 1 : (tokens - 1) * (2 * tokens + 1)]
        return ops.reshape(line, (-1, self.num_heads, tokens, 2 * tokens - 2))[..., :tokens]

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "relative_positions": self.relative_positions,
        }


@register
class TransformerBlock(keras.layers.Layer):
    """One pre-norm encoder block: self-attention, then an MLP, each added to its input.

    Dropout stands where the paper puts it: after every dense layer except the one that makes
    queries, keys and values.

    Args:
        num_heads: Number of attention heads k; must divide d.
        mlp_dim: Width f of the MLP.
        dropout_rate: Rate of each dropout.
        stochastic_depth_rate: Probability of dropping a branch for an example in training.
        layer_scale: Initial value of a learned scale on each branch; None for no scale.
        gelu: "tanh", the approximation that the paper's authors train with, or "exact".
        epsilon: Added to the variance in both LayerNorms.
        relative_positions: As in `SelfAttention`.
        remat: Whether training keeps only the input, and computes the block again on the way back:
            less memory, a third more arithmetic, the same result; no second derivatives.
    Input shape: `(b, t, d)`.
    Output shape: `(b, t, d)`; with `return_attention_scores=True` also `(b, k, t, t)`.
        `scores_offset` as in `SelfAttention`.
    Raises:
        ValueError: If `gelu` is unknown or d is not divisible by `num_heads`.
    Source: Dosovitskiy et al. 2021, equations 2 and 3 and table 3.
    """

    def __init__(
        self,
        num_heads,
        mlp_dim,
        dropout_rate=0.0,
        stochastic_depth_rate=0.0,
        layer_scale=None,
        gelu="tanh",
        epsilon=1e-6,
        relative_positions=False,
        remat=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if gelu not in GELUS:
            raise ValueError(f"`gelu` must be one of {GELUS}. Received: gelu={gelu!r}.")
        self.num_heads = int(num_heads)
        self.mlp_dim = int(mlp_dim)
        self.dropout_rate = float(dropout_rate)
        self.stochastic_depth_rate = float(stochastic_depth_rate)
        self.layer_scale = layer_scale
        self.gelu = gelu
        self.epsilon = float(epsilon)
        self.relative_positions = bool(relative_positions)
        self.remat = bool(remat)

    def build(self, input_shape):
        """Makes the two branches."""
        policy, width = self.dtype_policy, input_shape[-1]
        inner_shape = (*input_shape[:-1], self.mlp_dim)

        def dense(units, name, shape, activation=None):
            layer = Dense(
                units,
                activation,
                bias_initializer=keras.initializers.RandomNormal(stddev=1e-6),
                dtype=policy,
                name=name,
            )
            layer.build(shape)
            return layer

        def norm(name):
            layer = LayerNormalization(epsilon=self.epsilon, dtype=policy, name=name)
            layer.build(input_shape)
            return layer

        def scale(name):
            if self.layer_scale is None:
                return lambda x: x
            layer = LayerScale(self.layer_scale, dtype=policy, name=name)
            layer.build(input_shape)
            return layer

        def dropout(name):
            return Dropout(self.dropout_rate, dtype=policy, name=name)

        def drop_path(name):
            return StochasticDepth(self.stochastic_depth_rate, dtype=policy, name=name)

        self.attention_norm = norm("attention_norm")
        self.attention = SelfAttention(
            self.num_heads, self.relative_positions, dtype=policy, name="attention"
        )
        self.attention.build(input_shape)
        self.attention_dropout = dropout("attention_dropout")
        self.attention_scale = scale("attention_scale")
        self.attention_drop_path = drop_path("attention_drop_path")
        self.mlp_norm = norm("mlp_norm")
        gelu = functools.partial(ops.gelu, approximate=self.gelu == "tanh")
        self.mlp_in = dense(self.mlp_dim, "mlp_in", input_shape, gelu)
        self.mlp_in_dropout = dropout("mlp_in_dropout")
        self.mlp_out = dense(width, "mlp_out", inner_shape)
        self.mlp_out_dropout = dropout("mlp_out_dropout")
        self.mlp_scale = scale("mlp_scale")
        self.mlp_drop_path = drop_path("mlp_drop_path")

    def compute_output_shape(self, input_shape):
        """As the input."""
        return input_shape

    def call(self, x, training=None, return_attention_scores=False, scores_offset=None):
        """Runs both branches."""
        if self.remat and training and not return_attention_scores and scores_offset is None:
            return self._call_twice(x)
        return self._call(x, training, return_attention_scores, scores_offset)

    def _call_twice(self, x):
        layers = (
            self.attention_dropout, self.attention_drop_path, self.mlp_in_dropout,
            self.mlp_out_dropout, self.mlp_drop_path,
        )  # fmt: skip
        generators = [getattr(layer, "seed_generator", None) for layer in layers]
        generators = [generator for generator in generators if generator]  # of those with a rate
        seeds = [generator.next() for generator in generators]

        calls = []

        def again(x):
            if calls and tpu.is_target():
                x = tpu.renewed(x)  # else the compiler finds that all this was there before
            calls.append(True)
            with contextlib.ExitStack() as stack:
                for generator, seed in zip(generators, seeds, strict=True):
                    stack.enter_context(generator.giving(seed))
                return self._call(x, training=True)

        return keras.remat(again)(x)

    def _call(self, x, training, return_attention_scores=False, scores_offset=None):
        y = self.attention(
            self.attention_norm(x),
            return_attention_scores=return_attention_scores,
            scores_offset=scores_offset,
        )
        if return_attention_scores:
            y, scores = y
        y = self.attention_scale(self.attention_dropout(y, training=training))
        x = x + self.attention_drop_path(y, training=training)  # (b, t, d)
        y = self.mlp_in(self.mlp_norm(x))  # (b, t, f), after GELU
        y = self.mlp_out(self.mlp_in_dropout(y, training=training))  # (b, t, d)
        y = self.mlp_scale(self.mlp_out_dropout(y, training=training))
        x = x + self.mlp_drop_path(y, training=training)
        return (x, scores) if return_attention_scores else x

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "dropout_rate": self.dropout_rate,
            "stochastic_depth_rate": self.stochastic_depth_rate,
            "layer_scale": self.layer_scale,
            "gelu": self.gelu,
            "epsilon": self.epsilon,
            "relative_positions": self.relative_positions,
            "remat": self.remat,
        }
