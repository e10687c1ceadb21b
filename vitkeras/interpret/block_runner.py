"""Runs a ViT block by block, with the layers of the model itself."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from vitkeras.errors import InputError
from vitkeras.layers.transformer import TransformerBlock
from vitkeras.models.config import describe_model

#: Maximum size in bytes of the float32 scores of one block, which determines the batch size.
SCORE_BYTES = 2**26


class TokenLayout(NamedTuple):
    """The token sequence of a model: class token, registers and patches, in this order.

    Args:
        grid: `(rows, columns)` of the patches.
        stride: Pixels between two patches, in both directions.
        class_token: Whether there is a class token.
        num_registers: Number of register tokens.
        num_heads: Number of attention heads k.
        num_layers: Number of blocks.
    """

    grid: tuple[int, int]
    stride: int
    class_token: bool
    num_registers: int
    num_heads: int
    num_layers: int

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patch tokens."""
        return self.class_token + self.num_registers

    @property
    def num_tokens(self) -> int:
        """Length t of the sequence."""
        return self.grid[0] * self.grid[1] + self.num_prefix_tokens

    @property
    def pooling_weights(self) -> np.ndarray:
        """Weight of each token in the image representation, `(t,)`; they sum to 1.

        The class token has weight 1; without one, all patches have the same weight.
        """
        weights = np.zeros(self.num_tokens, "float32")
        if self.class_token:
            weights[0] = 1
        else:
            weights[self.num_prefix_tokens :] = 1 / (self.grid[0] * self.grid[1])
        return weights

    def to_grid(self, values: np.ndarray) -> np.ndarray:
        """Selects the patches of `(..., t)` and returns them as `(..., rows, columns)`."""
        values = values[..., self.num_prefix_tokens :]
        return values.reshape(*values.shape[:-1], *self.grid)


def token_layout(model: keras.Model) -> TokenLayout:
    """Returns the token layout of a model made by `vit`, or from its layers.

    Raises:
        InputError: (a ValueError) If the model has no patches or blocks, such as a ResNet, or other
            inputs than images.
    """
    layers = model.layers if isinstance(model, keras.Model) else []
    encoder = next((layer for layer in layers if layer.name == "patch_encoder"), None)
    blocks = [layer for layer in layers if isinstance(layer, TransformerBlock)]
    if encoder is None or not blocks or len(model.inputs) != 1:
        raise InputError(
            "`model` must be made by `vit`, with one input, patches and at least one block. "
            f"Received: {describe_model(model)}"
        )
    return TokenLayout(
        encoder.grid,
        model.input_shape[1] // encoder.grid[0],
        encoder.class_token,
        encoder.num_registers,
        blocks[0].num_heads,
        len(blocks),
    )


class BlockRunner:
    """Runs a model block by block on batches of images.

    Args:
        model: A model made by `vit`.
    Raises:
        InputError: If the model was not made by `vit`.
    """

    def __init__(self, model: keras.Model):
        self.layout = token_layout(model)
        self.blocks = [model.get_layer(f"block_{i:02d}") for i in range(self.layout.num_layers)]
        self.image_shape = model.input_shape[1:]
        first, last = self.blocks[0], self.blocks[-1]
        self._embed = keras.Function(model.input, first.input)
        # From the output of each block to the input of the next one.
        self._transitions = [
            _transition(block.output, following.input)
            for block, following in itertools.pairwise(self.blocks)
        ]
        self._transitions.append(_identity)
        #: From the output of the last block `(b, t, d)` to the output of the model.
        self.output_fn = keras.Function(last.output, model.output)

    def batches(self, images: ArrayLike) -> list[np.ndarray]:
        """Splits images `(b, h, w, c)` into batches whose scores take at most `SCORE_BYTES`.

        Raises:
            InputError: If the images do not have the shape that the model takes, or are none.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.image_shape or not len(images):
            raise InputError(
                "`images` must have the shape (b, h, w, c) of the model's input, with b > 0. "
                f"Received: images of shape {images.shape}, a model with input {self.image_shape}."
            )
        bytes_per_image = 4 * self.layout.num_heads * self.layout.num_tokens**2
        size = max(SCORE_BYTES // bytes_per_image, 1)
        return [images[i : i + size] for i in range(0, len(images), size)]

    def embed(self, images: np.ndarray) -> Any:
        """Returns the input of the first block, `(b, t, d)`."""
        return self._embed(ops.convert_to_tensor(images, dtype="float32"))

    def scores(self, images: np.ndarray, num_blocks: int | None = None) -> Iterator[np.ndarray]:
        """Yields the attention scores of each block, `(b, k, t, t)`; rows sum to 1.

        Args:
            images: One of `batches`.
            num_blocks: Number of blocks to run, from the first; None for all.
        """
        x = self.embed(images)
        blocks, transitions = self.blocks[:num_blocks], self._transitions[:num_blocks]
        for block, transition in zip(blocks, transitions, strict=True):
            x, scores = block(x, training=False, return_attention_scores=True)
            scores = to_numpy(scores)
            yield scores / scores.sum(axis=-1, keepdims=True)  # bfloat16 rounds
            x = transition(x)

    def tokens(self, images: np.ndarray) -> Iterator[Any]:
        """Yields the input of the first block and the output of each block, `(b, t, d)`."""
        x = self.embed(images)
        yield x
        for block, transition in zip(self.blocks, self._transitions, strict=True):
            x = block(x, training=False)
            yield x
            x = transition(x)

    def inputs(self, images: np.ndarray) -> list[Any]:
        """Returns the input of each block, and the output of the last one, `(b, t, d)` each."""
        first, *outputs = self.tokens(images)
        pairs = zip(self._transitions, outputs, strict=True)
        return [first, *(transition(x) for transition, x in pairs)]

    def block_fn(self, index: int) -> Callable:
        """Returns block `index` as a function for `vector_jacobian_product`.

        The function takes tokens `(b, t, d)` and an offset of the scores `(b, k, t, t)`. It returns
        the input of the next block, and the scores.
        """

        def function(x, offset):
            x, scores = self.blocks[index](
                x, training=False, return_attention_scores=True, scores_offset=offset
            )
            return self._transitions[index](x), scores

        return function


def _transition(output, following):
    """Returns the function between two blocks: position embeddings, or the identity."""
    return _identity if output is following else keras.Function(output, following)


def _identity(x):
    return x


def to_numpy(tensor: Any) -> np.ndarray:
    """Returns a tensor of any float dtype as a float32 array."""
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))
