"""The layers of a Vision Transformer.

Letters in shapes: b batch, h w height and width, c channels, p patch side, n patches,
t tokens (n, or n + 1 with a class token), d width, k heads, f MLP width.
"""

import keras
import numpy as np
from keras import ops

from vitkeras.dropping import Dropout, StochasticDepth, register
from vitkeras.errors import InputError

GELUS = ("tanh", "exact")

#: learned: a vector for each place, and one for the class token. learned_2d: one for each row and
#: one for each column, side by side. sincos_2d: fixed. none: nothing.
POSITIONS = ("learned", "learned_2d", "sincos_2d", "none")


@register
class Patches(keras.layers.Layer):
    """Cuts images into square patches, each flattened to one row.

    Args:
        patch_size: Side of a patch, in pixels.
    Input shape: `(b, h, w, c)`.
    Output shape: `(b, n, p*p*c)`, row-major over the grid; inside a row (row, column, channel).
    Raises:
        ValueError: If h or w is unknown or not divisible by `patch_size`.
    Source: Dosovitskiy et al. 2021, section 3.1.
    """

    def __init__(self, patch_size, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = int(patch_size)

    def grid(self, image_shape):
        """Returns `(rows, columns)` of the patches of images shaped `(b, h, w, c)`."""
        height, width = image_shape[1:3]
        if height is None or width is None or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                "`Patches` needs images whose height and width are known and divisible by "
                f"`patch_size`. Received: height={height}, width={width}, "
                f"patch_size={self.patch_size}."
            )
        return height // self.patch_size, width // self.patch_size

    def compute_output_shape(self, input_shape):
        """`(b, n, p*p*c)`."""
        rows, columns = self.grid(input_shape)
        return input_shape[0], rows * columns, self.patch_size**2 * input_shape[-1]

    def call(self, images):
        """Cuts the images."""
        rows, columns = self.grid(images.shape)
        side, channels = self.patch_size, images.shape[-1]
        x = ops.reshape(images, (-1, rows, side, columns, side, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))  # (b, rows, columns, p, p, c)
        return ops.reshape(x, (-1, rows * columns, side * side * channels))

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "patch_size": self.patch_size}


@register
class PatchEncoder(keras.layers.Layer):
    """Projects patches to the width, adds their positions, puts class token and registers in front.

    Args:
        grid: `(rows, columns)` of the patches; positions belong to these places.
        hidden_dim: Width d.
        class_token: Whether a learned token that stands for no patch comes first.
        num_registers: Learned tokens after it that stand for nothing and have no position.
        positions: One of `POSITIONS`.
        dropout_rate: Dropout on what comes out.
    Input shape: `(b, n, p*p*c)`.
    Output shape: `(b, t, d)`.
    Raises:
        ValueError: If the number of patches is not rows * columns, `positions` is unknown, or d
            does not suit them.
    Source: Dosovitskiy et al. 2021, section 3.1, equation 1, and appendix D.4; registers: Darcet et
        al. 2024, "Vision Transformers Need Registers".
    """

    def __init__(
        self,
        grid,
        hidden_dim,
        class_token=True,
        num_registers=0,
        positions="learned",
        dropout_rate=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if positions not in POSITIONS:
            raise ValueError(
                f"`positions` must be one of {POSITIONS}. Received: positions={positions!r}."
            )
        self.grid = tuple(grid)
        self.hidden_dim = int(hidden_dim)
        self.class_token = bool(class_token)
        self.num_registers = int(num_registers)
        self.positions = positions
        self.dropout_rate = float(dropout_rate)
        self.projection = keras.layers.Dense(
            hidden_dim,
            kernel_initializer="lecun_normal",
            dtype=self.dtype_policy,
            name="projection",
        )
        self.dropout = Dropout(dropout_rate, dtype=self.dtype_policy, name="dropout")

    @property
    def num_prefix_tokens(self):
        """Tokens in front of those of the patches."""
        return self.class_token + self.num_registers

    @property
    def num_tokens(self):
        """Length t of the sequence."""
        return self.grid[0] * self.grid[1] + self.num_prefix_tokens

    def build(self, input_shape):
        """Makes the projection, the tokens in front and the positions."""
        if input_shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(
                "`PatchEncoder` needs one patch for each place of its grid. "
                f"Received: {input_shape[1]} patches, grid={self.grid}."
            )
        self.projection.build(input_shape)
        d = self.hidden_dim
        if self.positions == "learned":
            # Registers have none.
            self.position_embedding = self._learned("position_embedding", (1, self._placed(), d))
        elif self.positions == "learned_2d":
            self.row_embedding = self._learned("row_embedding", (self.grid[0], d // 2))
            self.column_embedding = self._learned("column_embedding", (self.grid[1], d - d // 2))
        elif self.positions == "sincos_2d":
            self.fixed_positions = sincos_2d(self.grid, d)
        if self.class_token:
            self.token = self.add_weight(shape=(1, 1, d), initializer="zeros", name="class_token")
        if self.num_registers:
            self.registers = self._learned("registers", (1, self.num_registers, d))

    def _learned(self, name, shape):
        return self.add_weight(
            shape=shape, initializer=keras.initializers.RandomNormal(stddev=0.02), name=name
        )

    def _placed(self):
        return self.grid[0] * self.grid[1] + self.class_token

    def compute_output_shape(self, input_shape):
        """`(b, t, d)`."""
        return input_shape[0], self.num_tokens, self.hidden_dim

    def call(self, patches, training=None):
        """Encodes the patches."""
        x = self.projection(patches)  # (b, n, d)
        if self.positions in ("learned_2d", "sincos_2d"):
            x = x + ops.cast(self._positions_of_patches(), x.dtype)

        def front(token):
            shape = (ops.shape(x)[0], token.shape[1], self.hidden_dim)
            return ops.broadcast_to(ops.cast(token, x.dtype), shape)

        if self.class_token:
            x = ops.concatenate([front(self.token), x], axis=1)
        if self.positions == "learned":
            x = x + ops.cast(self.position_embedding, x.dtype)
        if self.num_registers:
            first, rest = x[:, : self.class_token], x[:, self.class_token :]
            x = ops.concatenate([first, front(self.registers), rest], axis=1)  # (b, t, d)
        return self.dropout(x, training=training)

    def _positions_of_patches(self):
        """Returns `(1, n, d)`."""
        if self.positions == "sincos_2d":
            return self.fixed_positions
        rows, columns = self.grid
        parts = [
            ops.repeat(ops.convert_to_tensor(self.row_embedding), columns, axis=0),
            ops.tile(ops.convert_to_tensor(self.column_embedding), (rows, 1)),
        ]
        return ops.concatenate(parts, axis=1)[None]

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "grid": self.grid,
            "hidden_dim": self.hidden_dim,
            "class_token": self.class_token,
            "num_registers": self.num_registers,
            "positions": self.positions,
            "dropout_rate": self.dropout_rate,
        }


def sincos_2d(grid, hidden_dim):
    """Returns fixed positions `(1, n, d)`: sine and cosine of column and row, a quarter of d each.

    Raises:
        InputError: (a ValueError) If d is not a multiple of 4, and at least 8.
    Source: Chen et al. 2021 (MoCo v3); Beyer et al. 2022, "Better plain ViT baselines".
    """
    if hidden_dim % 4 or hidden_dim < 8:
        raise InputError(
            "`positions=sincos_2d` needs a width that is 4 times 2 or more. "
            f"Received: hidden_dim={hidden_dim}."
        )
    rows, columns = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1)  # (n, 1) each
    rates = 1e4 ** -np.linspace(0, 1, hidden_dim // 4)
    parts = [np.sin(columns * rates), np.cos(columns * rates), np.sin(rows * rates)]
    table = np.concatenate([*parts, np.cos(rows * rates)], axis=1)[None]
    return table.astype("float32")


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
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention with one product for queries, keys and values.

    Args:
        num_heads: Number of heads k; must divide d.
    Input shape: `(b, t, d)`.
    Output shape: `(b, t, d)`; with `return_attention_scores=True` also `(b, k, t, t)`, whose
        rows sum to 1.
    Raises:
        ValueError: If d is not divisible by `num_heads`.
    Source: Dosovitskiy et al. 2021, appendix A.
    """

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = int(num_heads)

    def build(self, input_shape):
        """Makes `qkv`, whose columns are all queries, then keys, then values, and `out`."""
        width = input_shape[-1]
        if width % self.num_heads:
            raise ValueError(
                "The width must be divisible by `num_heads`. "
                f"Received: width={width}, num_heads={self.num_heads}."
            )
        # Scale 2 makes each third what Glorot uniform would make of a (d, d) kernel of its own.
        glorot = keras.initializers.VarianceScaling(2.0, "fan_avg", "uniform")
        self.qkv = keras.layers.Dense(
            3 * width, kernel_initializer=glorot, dtype=self.dtype_policy, name="qkv"
        )
        self.qkv.build(input_shape)
        self.out = keras.layers.Dense(width, dtype=self.dtype_policy, name="out")
        self.out.build(input_shape)

    def compute_output_shape(self, input_shape):
        """As the input."""
        return input_shape

    def call(self, x, return_attention_scores=False):
        """Attends."""
        tokens, width = x.shape[1:]
        head_dim = width // self.num_heads

        def heads(x):
            x = ops.reshape(x, (-1, tokens, self.num_heads, head_dim))
            return ops.transpose(x, (0, 2, 1, 3))  # (b, k, t, d/k)

        query, key, value = ops.split(self.qkv(x), 3, axis=-1)  # 3 x (b, t, d)
        query, key, value = heads(query * head_dim**-0.5), heads(key), heads(value)
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))  # (b, k, t, t)
        scores = ops.softmax(scores)
        x = ops.transpose(ops.matmul(scores, value), (0, 2, 1, 3))  # (b, t, k, d/k)
        x = self.out(ops.reshape(x, (-1, tokens, width)))
        return (x, scores) if return_attention_scores else x

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "num_heads": self.num_heads}


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
    Input shape: `(b, t, d)`.
    Output shape: `(b, t, d)`; with `return_attention_scores=True` also `(b, k, t, t)`.
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

    def build(self, input_shape):
        """Makes the two branches."""
        policy, width = self.dtype_policy, input_shape[-1]
        inner_shape = (*input_shape[:-1], self.mlp_dim)

        def dense(units, name, shape):
            layer = keras.layers.Dense(
                units,
                bias_initializer=keras.initializers.RandomNormal(stddev=1e-6),
                dtype=policy,
                name=name,
            )
            layer.build(shape)
            return layer

        def norm(name):
            layer = keras.layers.LayerNormalization(epsilon=self.epsilon, dtype=policy, name=name)
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
        self.attention = SelfAttention(self.num_heads, dtype=policy, name="attention")
        self.attention.build(input_shape)
        self.attention_dropout = dropout("attention_dropout")
        self.attention_scale = scale("attention_scale")
        self.attention_drop_path = drop_path("attention_drop_path")
        self.mlp_norm = norm("mlp_norm")
        self.mlp_in = dense(self.mlp_dim, "mlp_in", input_shape)
        self.mlp_in_dropout = dropout("mlp_in_dropout")
        self.mlp_out = dense(width, "mlp_out", inner_shape)
        self.mlp_out_dropout = dropout("mlp_out_dropout")
        self.mlp_scale = scale("mlp_scale")
        self.mlp_drop_path = drop_path("mlp_drop_path")

    def compute_output_shape(self, input_shape):
        """As the input."""
        return input_shape

    def call(self, x, training=None, return_attention_scores=False):
        """Runs both branches."""
        y = self.attention(self.attention_norm(x), return_attention_scores=return_attention_scores)
        if return_attention_scores:
            y, scores = y
        y = self.attention_scale(self.attention_dropout(y, training=training))
        x = x + self.attention_drop_path(y, training=training)  # (b, t, d)
        y = self.mlp_in(self.mlp_norm(x))  # (b, t, f)
        y = ops.gelu(y, approximate=self.gelu == "tanh")
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
        }
