"""From an image to tokens: patches, their projection, class token, registers and positions."""

import keras
import numpy as np
from keras import ops

from vitkeras.arguments import check_int
from vitkeras.errors import InputError
from vitkeras.layers.regularization import Dropout, register

#: Absolute positions. learned: a vector per patch, and one for the class token. learned_2d: one
#: for each row and one for each column, concatenated. sincos_2d: fixed. none: no positions.
POSITIONS = ("learned", "learned_2d", "sincos_2d", "none")


@register
class Patches(keras.layers.Layer):
    """Cuts images into square patches and flattens each one.

    Args:
        patch_size: Side of a patch, in pixels.
    Input shape: `(b, h, w, c)`.
    Output shape: `(b, n, p*p*c)`: patches in row-major order, each as (row, column, channel).
    Raises:
        ValueError: If h or w is unknown or not divisible by `patch_size`.
    Source: Dosovitskiy et al. 2021, section 3.1.
    """

    def __init__(self, patch_size: int, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = check_int("patch_size", patch_size)

    def grid(self, image_shape):
        """Returns `(rows, columns)` of the patches of images `(b, h, w, c)`."""
        height, width = image_shape[1:3]
        if height is None or width is None or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                "`Patches` requires a static height and width divisible by `patch_size`. "
                f"Received: height={height}, width={width}, patch_size={self.patch_size}."
            )
        return height // self.patch_size, width // self.patch_size

    def compute_output_shape(self, input_shape):
        rows, columns = self.grid(input_shape)
        return input_shape[0], rows * columns, self.patch_size**2 * input_shape[-1]

    def call(self, images):
        rows, columns = self.grid(images.shape)
        side, channels = self.patch_size, images.shape[-1]
        x = ops.reshape(images, (-1, rows, side, columns, side, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))  # (b, rows, columns, p, p, c)
        return ops.reshape(x, (-1, rows * columns, side * side * channels))

    def get_config(self):
        return {**super().get_config(), "patch_size": self.patch_size}


@register
class PositionEmbedding(keras.layers.Layer):
    """Adds position embeddings.

    Args:
        grid: `(rows, columns)` of the patches.
        positions: One of `POSITIONS`.
        class_token: Whether the first token is a class token; "learned" has a vector for it.
        num_registers: Number of register tokens after it, which have no position.
    Input shape: `(b, t, d)`.
    Output shape: Same as the input.
    Raises:
        ValueError: If `positions` is unknown, or d or t does not fit the other arguments.
    Source: Dosovitskiy et al. 2021, appendix D.4.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        positions: str = "learned",
        class_token: bool = True,
        num_registers: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if positions not in POSITIONS:
            raise ValueError(
                f"`positions` must be one of {POSITIONS}. Received: positions={positions!r}."
            )
        self.grid = tuple(grid)
        self.positions = positions
        self.class_token = bool(class_token)
        self.num_registers = check_int("num_registers", num_registers, 0)

    @property
    def num_prefix_tokens(self):
        """Number of tokens before the patch tokens."""
        return self.class_token + self.num_registers

    def build(self, input_shape):
        tokens, d = input_shape[1:]
        rows, columns = self.grid
        if tokens != rows * columns + self.num_prefix_tokens:
            raise ValueError(
                "`PositionEmbedding` requires one token per cell of `grid` and the prefix tokens. "
                f"Received: {tokens} tokens, grid={self.grid}, "
                f"{self.num_prefix_tokens} prefix tokens."
            )
        if self.positions == "learned":
            self.embedding = self._add_embedding(
                "embedding", (1, rows * columns + self.class_token, d)
            )
        elif self.positions == "learned_2d":
            self.rows = self._add_embedding("rows", (rows, d // 2))
            self.columns = self._add_embedding("columns", (columns, d - d // 2))
        elif self.positions == "sincos_2d":
            self.table = sincos_2d(self.grid, d)

    def _add_embedding(self, name, shape):
        return self.add_weight(
            shape=shape, initializer=keras.initializers.RandomNormal(stddev=0.02), name=name
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x):
        if self.positions == "none":
            return x
        if self.positions == "learned" and not self.num_registers:
            return x + ops.cast(self.embedding, x.dtype)
        patches = self._patch_positions()  # (1, n, d)
        prefix = []
        if self.class_token:
            learned = self.positions == "learned"
            prefix.append(self.embedding[:, :1] if learned else ops.zeros_like(patches[:, :1]))
        if self.num_registers:
            prefix.append(ops.zeros((1, self.num_registers, x.shape[-1]), patches.dtype))
        table = ops.concatenate([*prefix, patches], axis=1)  # (1, t, d)
        return x + ops.cast(table, x.dtype)

    def _patch_positions(self):
        """Returns the positions of the patch tokens, `(1, n, d)`."""
        if self.positions == "learned":
            return ops.convert_to_tensor(self.embedding)[:, int(self.class_token) :]
        if self.positions == "sincos_2d":
            return ops.convert_to_tensor(self.table)
        rows, columns = self.grid
        parts = [
            ops.repeat(ops.convert_to_tensor(self.rows), columns, axis=0),
            ops.tile(ops.convert_to_tensor(self.columns), (rows, 1)),
        ]
        return ops.concatenate(parts, axis=1)[None]

    def get_config(self):
        return {
            **super().get_config(),
            "grid": self.grid,
            "positions": self.positions,
            "class_token": self.class_token,
            "num_registers": self.num_registers,
        }


@register
class PatchEncoder(keras.layers.Layer):
    """Projects patches to width d, prepends class token and registers, adds position embeddings.

    Args:
        grid: `(rows, columns)` of the patches.
        hidden_dim: Width d.
        class_token: Whether to prepend a learned class token.
        num_registers: Number of learned register tokens after it.
        positions: One of `POSITIONS`.
        dropout_rate: Rate of the dropout on the output.
    Input shape: `(b, n, p*p*c)`.
    Output shape: `(b, t, d)`.
    Raises:
        ValueError: If the number of patches is not rows * columns, or `positions` is unknown or
            does not fit d.
    Source: Dosovitskiy et al. 2021, section 3.1, equation 1; registers: Darcet et al. 2024,
        "Vision Transformers Need Registers".
    """

    def __init__(
        self,
        grid: tuple[int, int],
        hidden_dim: int,
        class_token: bool = True,
        num_registers: int = 0,
        positions: str = "learned",
        dropout_rate: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_dim = check_int("hidden_dim", hidden_dim)
        self.dropout_rate = float(dropout_rate)
        self.projection = keras.layers.Dense(
            self.hidden_dim,
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
        """Whether there is a class token."""
        return self.positions.class_token

    @property
    def num_registers(self):
        """Number of register tokens."""
        return self.positions.num_registers

    @property
    def num_prefix_tokens(self):
        """Number of tokens before the patch tokens."""
        return self.positions.num_prefix_tokens

    @property
    def num_tokens(self):
        """Length t of the sequence."""
        return self.grid[0] * self.grid[1] + self.num_prefix_tokens

    def build(self, input_shape):
        if input_shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(
                "`PatchEncoder` requires one patch per cell of `grid`. "
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
        return input_shape[0], self.num_tokens, self.hidden_dim

    def call(self, patches, training=None):
        x = self.projection(patches)  # (b, n, d)

        def broadcast(token):
            shape = (ops.shape(x)[0], token.shape[1], self.hidden_dim)
            return ops.broadcast_to(ops.cast(token, x.dtype), shape)

        prefix = [broadcast(self.token)] if self.class_token else []
        if self.num_registers:
            prefix.append(broadcast(self.registers))
        x = ops.concatenate([*prefix, x], axis=1) if prefix else x  # (b, t, d)
        return self.dropout(self.positions(x), training=training)

    def get_config(self):
        return {
            **super().get_config(),
            "grid": self.grid,
            "hidden_dim": self.hidden_dim,
            "class_token": self.class_token,
            "num_registers": self.num_registers,
            "positions": self.positions.positions,
            "dropout_rate": self.dropout_rate,
        }


def sincos_2d(grid: tuple[int, int], hidden_dim: int) -> np.ndarray:
    """Returns fixed positions `(1, n, d)`, float32: sine and cosine of column and row, d / 4 each.

    Raises:
        InputError: (a ValueError) If d is not a multiple of 4, or less than 8.
    Source: Chen et al. 2021 (MoCo v3); Beyer et al. 2022, "Better plain ViT baselines".
    """
    if hidden_dim % 4 or hidden_dim < 8:
        raise InputError(
            "`hidden_dim` must be a multiple of 4 and at least 8 for `positions=sincos_2d`. "
            f"Received: hidden_dim={hidden_dim}."
        )
    rows, columns = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1)  # (n, 1) each
    frequencies = 1e4 ** -np.linspace(0, 1, hidden_dim // 4)
    parts = [f(axis * frequencies) for axis in (columns, rows) for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1)[None].astype("float32")
