"""From an image to tokens: patches, their projection, their positions, and tokens of no place.

Letters in shapes as in `layers.py`.
"""

import keras
import numpy as np
from keras import ops

from vitkeras.dropping import Dropout, register
from vitkeras.errors import InputError

#: What a `PositionEmbedding` can be. learned: a vector for each place, and one for the class token.
#: learned_2d: one for each row and one for each column, side by side. sincos_2d: fixed. none.
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
class PositionEmbedding(keras.layers.Layer):
    """Adds to each token what stands for its place.

    Args:
        grid: `(rows, columns)` of the patches; positions belong to these places.
        positions: One of `POSITIONS`.
        class_token: Whether the first token is one; "learned" has a vector for it.
        num_registers: Tokens between it and the patches, which have no position.
    Input shape: `(b, t, d)`.
    Output shape: as the input.
    Raises:
        ValueError: If `positions` is unknown, or d or t does not suit.
    Source: Dosovitskiy et al. 2021, appendix D.4.
    """

    def __init__(self, grid, positions="learned", class_token=True, num_registers=0, **kwargs):
        super().__init__(**kwargs)
        if positions not in POSITIONS:
            raise ValueError(
                f"`positions` must be one of {POSITIONS}. Received: positions={positions!r}."
            )
        self.grid = tuple(grid)
        self.positions = positions
        self.class_token = bool(class_token)
        self.num_registers = int(num_registers)

    @property
    def num_prefix_tokens(self):
        """Tokens in front of those of the patches."""
        return self.class_token + self.num_registers

    def build(self, input_shape):
        """Makes `embedding` `(1, n or n + 1, d)`, or `rows` and `columns`, or nothing."""
        tokens, d = input_shape[1:]
        rows, columns = self.grid
        if tokens != rows * columns + self.num_prefix_tokens:
            raise ValueError(
                "`PositionEmbedding` needs one token for each place of its grid, and those in "
                f"front. Received: {tokens} tokens, grid={self.grid}, "
                f"{self.num_prefix_tokens} in front."
            )
        if self.positions == "learned":
            self.embedding = self._learned("embedding", (1, rows * columns + self.class_token, d))
        elif self.positions == "learned_2d":
            self.rows = self._learned("rows", (rows, d // 2))
            self.columns = self._learned("columns", (columns, d - d // 2))
        elif self.positions == "sincos_2d":
            self.fixed = sincos_2d(self.grid, d)

    def _learned(self, name, shape):
        return self.add_weight(
            shape=shape, initializer=keras.initializers.RandomNormal(stddev=0.02), name=name
        )

    def compute_output_shape(self, input_shape):
        """As the input."""
        return input_shape

    def call(self, x):
        """Adds the positions."""
        if self.positions == "none":
            return x
        if self.positions == "learned" and not self.num_registers:
            return x + ops.cast(self.embedding, x.dtype)
        places = self._of_patches()  # (1, n, d)
        front = []
        if self.class_token:
            learned = self.positions == "learned"
            front.append(self.embedding[:, :1] if learned else ops.zeros_like(places[:, :1]))
        if self.num_registers:
            front.append(ops.zeros((1, self.num_registers, x.shape[-1]), places.dtype))
        table = ops.concatenate([*front, places], axis=1)  # (1, t, d)
        return x + ops.cast(table, x.dtype)

    def _of_patches(self):
        """Returns `(1, n, d)`."""
        if self.positions == "learned":
            return ops.convert_to_tensor(self.embedding)[:, int(self.class_token) :]
        if self.positions == "sincos_2d":
            return ops.convert_to_tensor(self.fixed)
        rows, columns = self.grid
        parts = [
            ops.repeat(ops.convert_to_tensor(self.rows), columns, axis=0),
            ops.tile(ops.convert_to_tensor(self.columns), (rows, 1)),
        ]
        return ops.concatenate(parts, axis=1)[None]

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "grid": self.grid,
            "positions": self.positions,
            "class_token": self.class_token,
            "num_registers": self.num_registers,
        }


@register
class PatchEncoder(keras.layers.Layer):
    """Projects patches to the width, puts class token and registers in front, adds positions.

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
    Source: Dosovitskiy et al. 2021, section 3.1, equation 1; registers: Darcet et al. 2024,
        "Vision Transformers Need Registers".
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
        self.hidden_dim = int(hidden_dim)
        self.dropout_rate = float(dropout_rate)
        self.projection = keras.layers.Dense(
            hidden_dim,
            kernel_initializer="lecun_normal",
            dtype=self.dtype_policy,
            name="projection",
        )
        self.positions = PositionEmbedding(
            grid,
            positions,
            class_token,
            num_registers,
            dtype=self.dtype_policy,
            name="positions",
        )
        self.dropout = Dropout(dropout_rate, dtype=self.dtype_policy, name="dropout")

    @property
    def grid(self):
        """`(rows, columns)` of the patches."""
        return self.positions.grid

    @property
    def class_token(self):
        """Whether there is one."""
        return self.positions.class_token

    @property
    def num_registers(self):
        """Number of registers."""
        return self.positions.num_registers

    @property
    def num_prefix_tokens(self):
        """Tokens in front of those of the patches."""
        return self.positions.num_prefix_tokens

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
        d = self.hidden_dim
        self.projection.build(input_shape)
        self.positions.build((input_shape[0], self.num_tokens, d))
        if self.class_token:
            self.token = self.add_weight(shape=(1, 1, d), initializer="zeros", name="class_token")
        if self.num_registers:
            self.registers = self.add_weight(
                shape=(1, self.num_registers, d),
                initializer=keras.initializers.RandomNormal(stddev=0.02),
                name="registers",
            )

    def compute_output_shape(self, input_shape):
        """`(b, t, d)`."""
        return input_shape[0], self.num_tokens, self.hidden_dim

    def call(self, patches, training=None):
        """Encodes the patches."""
        x = self.projection(patches)  # (b, n, d)

        def front(token):
            shape = (ops.shape(x)[0], token.shape[1], self.hidden_dim)
            return ops.broadcast_to(ops.cast(token, x.dtype), shape)

        parts = [front(self.token)] if self.class_token else []
        if self.num_registers:
            parts.append(front(self.registers))
        x = ops.concatenate([*parts, x], axis=1) if parts else x  # (b, t, d)
        return self.dropout(self.positions(x), training=training)

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "grid": self.grid,
            "hidden_dim": self.hidden_dim,
            "class_token": self.class_token,
            "num_registers": self.num_registers,
            "positions": self.positions.positions,
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
