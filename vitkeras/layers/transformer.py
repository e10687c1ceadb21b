"""The encoder block of a Vision Transformer and its parts."""

import contextlib
import functools

import keras
from keras import ops

from vitkeras.arguments import check_int
from vitkeras.keras_internals import warn_of_inexact_training
from vitkeras.layers import tpu_attention
from vitkeras.layers.regularization import Dropout, StochasticDepth, register

GELUS = ("tanh", "exact")


@register
class LayerScale(keras.layers.Layer):
    """Multiplies each channel of a residual branch by a learned factor.

    Args:
        initial_value: Initial value of the factors.
    Input shape: `(b, t, d)`.
    Output shape: Same as the input.
    Source: Touvron et al. 2021, "Going deeper with Image Transformers".
    """

    def __init__(self, initial_value: float, **kwargs):
        super().__init__(**kwargs)
        self.initial_value = float(initial_value)

    def build(self, input_shape):
        self.gamma = self.add_weight(
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_value),
            name="gamma",
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x):
        return x * ops.cast(self.gamma, x.dtype)

    def get_config(self):
        return {**super().get_config(), "initial_value": self.initial_value}


@register
class LayerNormalization(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` over the last axis, with fewer passes over the data.

    Like Keras, it computes the statistics in float32 or wider.
    """

    def call(self, x):
        dtype = keras.backend.result_type(x.dtype, "float32")
        x = ops.cast(x, dtype)
        mean, variance = ops.moments(x, -1, keepdims=True)
        x = (x - mean) * ops.rsqrt(variance + self.epsilon)
        x = x * ops.cast(self.gamma, dtype) + ops.cast(self.beta, dtype)
        return ops.cast(x, self.compute_dtype)


@register
class Dense(keras.layers.Dense):
    """`keras.layers.Dense` on tokens, in the form that is fastest on the device.

    Input shape: `(b, t, d)`.
    Output shape: `(b, t, units)`.
    """

    def call(self, x, training=None):
        if tpu_attention.is_target():
            # Merging batch and tokens would copy the tensor: a TPU pads tokens to tiles of 8 rows.
            kernel = ops.cast(self.kernel, x.dtype)
            x = _einsum("btd,df->btf", x, kernel)
            x = x + ops.cast(self.bias, x.dtype) if self.use_bias else x
            return self.activation(x)
        # A matrix product: TensorFlow then fuses the bias and, for inference, the GELU into it.
        tokens, width = x.shape[1:]
        x = super().call(ops.reshape(x, (-1, width)), training=training)
        return ops.reshape(x, (-1, tokens, self.units))


def _einsum(equation, *operands):
    """Calls `tf.einsum`; `keras.ops.einsum` reshapes some operands to matrices."""
    import tensorflow as tf

    return tf.einsum(equation, *operands)


def _has_fused_attention():
    """Returns whether `keras.ops.dot_product_attention` has a fused kernel: JAX on an accelerator.

    On TensorFlow and on CPUs it is slower than two matrix products
    (experiments/benchmarks/attention.py).
    """
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.default_backend() != "cpu"


@register
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention with one projection for queries, keys and values.

    With relative positions, the scores get a second term: the product of the query with a learned
    vector for the distance between the two tokens in the sequence.

    Args:
        num_heads: Number of heads k; must divide d.
        relative_positions: Whether to use relative positions.
    Call arguments:
        return_attention_scores: Whether to return the scores `(b, k, t, t)` too; rows sum to 1.
        scores_offset: Tensor `(b, k, t, t)` that is added to the scores. The gradient of an offset
            of zeros is that of the scores.
    Input shape: `(b, t, d)`.
    Output shape: `(b, t, d)`.
    Raises:
        ValueError: If d is not divisible by `num_heads`.
    Source: Dosovitskiy et al. 2021, appendices A and D.4.
    """

    def __init__(self, num_heads: int, relative_positions: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = check_int("num_heads", num_heads)
        self.relative_positions = bool(relative_positions)

    def build(self, input_shape):
        width = input_shape[-1]
        if width % self.num_heads:
            raise ValueError(
                "The width must be divisible by `num_heads`. "
                f"Received: width={width}, num_heads={self.num_heads}."
            )
        # Scale 2 gives each of the three (d, d) kernels the limits of Glorot uniform.
        glorot = keras.initializers.VarianceScaling(2.0, "fan_avg", "uniform")
        # Columns: all queries, all keys, all values.
        self.qkv = Dense(3 * width, kernel_initializer=glorot, dtype=self.dtype_policy, name="qkv")
        self.qkv.build(input_shape)
        self.out = Dense(width, dtype=self.dtype_policy, name="out")
        self.out.build(input_shape)
        if self.relative_positions:
            # Row i is for a key t - 1 - i tokens before its query.
            self.relative = self.add_weight(
                shape=(2 * input_shape[1] - 1, width),
                initializer=keras.initializers.RandomNormal(stddev=0.02),
                name="relative",
            )

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x, return_attention_scores=False, scores_offset=None):
        tokens, width = x.shape[1:]
        head_dim = width // self.num_heads
        needs_scores = (
            self.relative_positions or return_attention_scores or scores_offset is not None
        )
        if not needs_scores and tpu_attention.is_target():
            return self._call_on_tpu(x, head_dim)
        x = ops.reshape(self.qkv(x), (-1, tokens, 3, self.num_heads, head_dim))
        if not needs_scores and _has_fused_attention():
            query, key, value = ops.unstack(x, axis=2)  # (b, t, k, d/k)
            x = ops.dot_product_attention(query, key, value)
            return self.out(ops.reshape(x, (-1, tokens, width)))
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

    def _call_on_tpu(self, x, head_dim):
        # No transposed copies: each product names the axes of its result.
        operands = []
        for chunk in tpu_attention.chunks(x, self.num_heads):
            # Cast per chunk, so that the gradients of the chunks are summed in float32.
            shape = (-1, 3, self.num_heads, head_dim)
            kernel = ops.reshape(ops.cast(self.qkv.kernel, x.dtype), shape)  # (d, 3, k, d/k)
            bias = ops.reshape(ops.cast(self.qkv.bias, x.dtype), (*shape[1:], 1))
            query, key, value = (
                _einsum("btd,dkh->bkht", chunk, kernel[:, i]) + bias[i] for i in range(3)
            )
            operands.append((query * head_dim**-0.5, key, value))
        x = ops.concatenate(tpu_attention.attend(operands))  # (b, k, d/k, t)
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
        # Element (i, j) of the result is element (i, t-1 - i + j) of `scores`. In the flattened
        # scores without the first t-1 elements, rows of length 2t-2 start at these elements.
        flat = ops.reshape(scores, (-1, self.num_heads, tokens * (2 * tokens - 1)))
        flat = flat[:, :, tokens - 1 : (tokens - 1) * (2 * tokens + 1)]
        return ops.reshape(flat, (-1, self.num_heads, tokens, 2 * tokens - 2))[..., :tokens]

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "relative_positions": self.relative_positions,
        }


@register
class TransformerBlock(keras.layers.Layer):
    """A pre-norm encoder block: self-attention and an MLP, each with a residual connection.

    Dropout follows every dense layer except the projection to queries, keys and values, as in the
    paper.

    Args:
        num_heads: Number of attention heads k; must divide d.
        mlp_dim: Width f of the MLP.
        dropout_rate: Rate of each dropout.
        stochastic_depth_rate: Probability of dropping a branch of an example in training.
        layer_scale: Initial value of LayerScale on each branch; None for no LayerScale.
        gelu: "tanh" (the approximation that the authors train with) or "exact".
        epsilon: Added to the variance in both LayerNorms.
        relative_positions: Whether the attention uses relative positions.
        remat: Whether the backward pass recomputes the block from its input: less memory, a third
            more arithmetic, the same result. Second derivatives are not supported.
    Call arguments:
        return_attention_scores, scores_offset: See `SelfAttention`.
    Input shape: `(b, t, d)`.
    Output shape: `(b, t, d)`.
    Raises:
        ValueError: If `gelu` is unknown or d is not divisible by `num_heads`.
    Source: Dosovitskiy et al. 2021, equations 2 and 3 and table 3.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_dim: int,
        dropout_rate: float = 0.0,
        stochastic_depth_rate: float = 0.0,
        layer_scale: float | None = None,
        gelu: str = "tanh",
        epsilon: float = 1e-6,
        relative_positions: bool = False,
        remat: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if gelu not in GELUS:
            raise ValueError(f"`gelu` must be one of {GELUS}. Received: gelu={gelu!r}.")
        self.num_heads = check_int("num_heads", num_heads)
        self.mlp_dim = check_int("mlp_dim", mlp_dim)
        self.dropout_rate = float(dropout_rate)
        self.stochastic_depth_rate = float(stochastic_depth_rate)
        self.layer_scale = layer_scale
        self.gelu = gelu
        self.epsilon = float(epsilon)
        self.relative_positions = bool(relative_positions)
        self.remat = bool(remat)

    def build(self, input_shape):
        policy, width = self.dtype_policy, input_shape[-1]
        mlp_shape = (*input_shape[:-1], self.mlp_dim)

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
        self.mlp_out = dense(width, "mlp_out", mlp_shape)
        self.mlp_out_dropout = dropout("mlp_out_dropout")
        self.mlp_scale = scale("mlp_scale")
        self.mlp_drop_path = drop_path("mlp_drop_path")

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x, training=None, return_attention_scores=False, scores_offset=None):
        warn_of_inexact_training(training)
        if self.remat and training and not return_attention_scores and scores_offset is None:
            return self._call_with_remat(x)
        return self._call(x, training, return_attention_scores, scores_offset)

    def _call_with_remat(self, x):
        random_layers = (
            self.attention_dropout, self.attention_drop_path, self.mlp_in_dropout,
            self.mlp_out_dropout, self.mlp_drop_path,
        )  # fmt: skip
        # The recomputation uses the seeds of the forward pass. Layers at rate 0 have no generator.
        generators = [getattr(layer, "seed_generator", None) for layer in random_layers]
        generators = [generator for generator in generators if generator]
        seeds = [generator.next() for generator in generators]
        traced = []

        def recomputable_call(x):
            if traced and tpu_attention.is_target():
                # Prevents XLA from eliminating the recomputation as a common subexpression.
                x = tpu_attention.optimization_barrier(x)
            traced.append(True)
            with contextlib.ExitStack() as stack:
                for generator, seed in zip(generators, seeds, strict=True):
                    stack.enter_context(generator.with_seed(seed))
                return self._call(x, training=True)

        return keras.remat(recomputable_call)(x)

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
        y = self.mlp_in(self.mlp_norm(x))  # (b, t, f), with GELU
        y = self.mlp_out(self.mlp_in_dropout(y, training=training))  # (b, t, d)
        y = self.mlp_scale(self.mlp_out_dropout(y, training=training))
        x = x + self.mlp_drop_path(y, training=training)
        return (x, scores) if return_attention_scores else x

    def get_config(self):
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
