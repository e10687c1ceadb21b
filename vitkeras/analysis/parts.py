"""A model made by `vit`, cut before, between and behind its blocks. Its own layers are called.

Letters in shapes as in `layers.py`.
"""

import itertools
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from vitkeras.errors import InputError
from vitkeras.layers import TransformerBlock
from vitkeras.models import VisionModel

#: Of the float32 scores of one block, for as many images as are looked at together.
SCORE_BYTES = 2**26


class Layout(NamedTuple):
    """What the tokens of a model stand for: class token, registers, patches, in this order."""

    #: (rows, columns) of the patches.
    grid: tuple[int, int]
    #: Pixels between two patches, in both directions.
    stride: int
    class_token: bool
    num_registers: int
    num_heads: int
    #: Blocks.
    num_layers: int

    @property
    def num_prefix_tokens(self):
        """Tokens in front of those of the patches."""
        return self.class_token + self.num_registers

    @property
    def num_tokens(self):
        """Length t of the sequence."""
        return self.grid[0] * self.grid[1] + self.num_prefix_tokens

    @property
    def query(self):
        """What represents the image, as a mean over tokens: `(t,)`, summing to 1.

        The class token, or else all patches alike.
        """
        weights = np.zeros(self.num_tokens, "float32")
        if self.class_token:
            weights[0] = 1
        else:
            weights[self.num_prefix_tokens :] = 1 / (self.grid[0] * self.grid[1])
        return weights

    def on_grid(self, values):
        """Takes what belongs to patches out of `(..., t)`; returns `(..., rows, columns)`."""
        values = values[..., self.num_prefix_tokens :]
        return values.reshape(*values.shape[:-1], *self.grid)


def layout(model):
    """Returns the `Layout` of a model made by `vit`.

    Raises:
        InputError: (a ValueError) If it is none, such as a ResNet, which has neither patches nor
            attention.
    """
    encoder = next((each for each in model.layers if each.name == "patch_encoder"), None)
    blocks = [each for each in model.layers if isinstance(each, TransformerBlock)]
    if encoder is None or not blocks:
        raise InputError(
            "Patches, positions and attention are those of a model made by `vit`, with at least "
            f"one block. Received: {model.name}, which has no such layers."
        )
    return Layout(
        encoder.grid,
        model.input_shape[1] // encoder.grid[0],
        encoder.class_token,
        encoder.num_registers,
        blocks[0].num_heads,
        len(blocks),
    )


class Parts:
    """Runs a model block by block, a part of the images at a time.

    Args:
        model: Made by `vit`.
    Raises:
        InputError: If it is not.
    """

    def __init__(self, model):
        self.layout = layout(model)
        self.blocks = [model.get_layer(f"block_{i:02d}") for i in range(self.layout.num_layers)]
        self.image_shape = model.input_shape[1:]
        first, last = self.blocks[0], self.blocks[-1]
        self._front = VisionModel(model.input, first.input)  # it scales pixels, too
        self._joins = [_join(a.output, b.input) for a, b in itertools.pairwise(self.blocks)]
        self._joins.append(_as_it_is)
        self.tail = keras.Function(last.output, model.output)

    def batches(self, images):
        """Cuts images `(b, h, w, 3)` so that the scores of one block take `SCORE_BYTES` at most.

        Raises:
            InputError: If they are not what the model takes.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.image_shape or not len(images):
            raise InputError(
                "`images` must be (b, h, w, 3), of the model's size and at least one. "
                f"Received: shape {images.shape}, a model of {self.image_shape}."
            )
        if images.dtype != "uint8":
            images = images.astype("float32")
        one = 4 * self.layout.num_heads * self.layout.num_tokens**2
        size = max(SCORE_BYTES // one, 1)
        return [images[i : i + size] for i in range(0, len(images), size)]

    def before(self, images):
        """Returns what the first block takes, `(b, t, d)`."""
        return self._front(images, training=False)

    def scores(self, images, upto=None):
        """Yields each block's attention for images of one batch, `(b, k, t, t)`, rows summing to 1.

        Args:
            images: One of `batches`.
            upto: The number of blocks, from the first, that are run; None for all.
        """
        x = self.before(images)
        for block, join in zip(self.blocks[:upto], self._joins[:upto], strict=True):
            x, scores = block(x, training=False, return_attention_scores=True)
            scores = to_numpy(scores)
            yield scores / scores.sum(axis=-1, keepdims=True)  # bfloat16 rounds
            x = join(x)

    def tokens(self, images):
        """Yields what comes into the first block and out of each one, `(b, t, d)`, as tensors."""
        x = self.before(images)
        yield x
        for block, join in zip(self.blocks, self._joins, strict=True):
            x = block(x, training=False)
            yield x
            x = join(x)

    def inputs(self, images):
        """Returns what comes into each block, and out of the last: a list of `(b, t, d)`."""
        outputs = list(self.tokens(images))
        joined = [join(x) for join, x in zip(self._joins, outputs[1:], strict=True)]
        return [outputs[0], *joined]

    def through(self, index):
        """Returns block `index` and what follows up to the next, for `pull_back`.

        It takes tokens `(b, t, d)` and an offset of the scores `(b, k, t, t)`, and returns the
        tokens that the next block takes, and the scores.
        """

        def function(x, offset):
            x, scores = self.blocks[index](
                x, training=False, return_attention_scores=True, scores_offset=offset
            )
            return self._joins[index](x), scores

        return function


def _join(output, following):
    """Returns what lies between two blocks: positions, or nothing."""
    return _as_it_is if output is following else keras.Function(output, following)


def _as_it_is(x):
    return x


def to_numpy(tensor):
    """Returns a tensor of any float type as a float32 array."""
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))
