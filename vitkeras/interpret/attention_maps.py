"""Attention maps, token norms and filters of a model, as arrays.

Images are `(b, h, w, c)`, of the model's size and in its value range: pixels from 0 to 255 of any
dtype, unless the model was built with `include_rescaling=False`. They are processed in batches, so
that memory is bounded by the result. The scores are those of the model's own layers; only one block
keeps its scores at a time.
"""

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from vitkeras.arguments import check_range
from vitkeras.errors import InputError
from vitkeras.interpret.block_runner import BlockRunner, to_numpy, token_layout
from vitkeras.interpret.gradients import vector_jacobian_product
from vitkeras.interpret.measures import cosine_similarities, mean_distances, rollout


def first_filters(model: keras.Model) -> np.ndarray:
    """Returns the filters of the first layer, as images.

    The first layer is the patch projection. In a hybrid it is the first convolution of the stem,
    whose kernel is returned as standardized.

    Args:
        model: A model made by `vit`.
    Returns:
        `(d, p, p, c)`; of a hybrid `(stem width, 7, 7, c)`.
    Raises:
        InputError: (a ValueError) If the model was not made by `vit`.
    """
    token_layout(model)
    stem = next((layer for layer in model.layers if layer.name == "stem"), None)
    if stem is None:
        side = model.get_layer("patches").patch_size
        kernel = to_numpy(model.get_layer("patch_encoder").projection.kernel)  # (p*p*c, d)
        kernel = kernel.reshape(side, side, -1, kernel.shape[1])
    else:
        kernel = to_numpy(stem.root.standardized_kernel())  # (7, 7, c, width)
    return kernel.transpose(3, 0, 1, 2)


def position_similarity(model: keras.Model) -> np.ndarray:
    """Returns the cosine similarity of the position embeddings of each pair of patches.

    If a model adds other positions before each block, those before the first block are compared.

    Args:
        model: A model made by `vit`.
    Returns:
        `(rows, columns, rows, columns)`.
    Raises:
        InputError: (a ValueError) If the model was not made by `vit`, or adds no positions.
    Source: Dosovitskiy et al. 2021, figure 7, center, and figure 10.
    """
    layout, names = token_layout(model), {layer.name for layer in model.layers}
    encoder = model.get_layer("patch_encoder")
    layer = encoder.positions
    for name in ("positions", "positions_00"):
        if name in names:
            layer = model.get_layer(name)
    if layer.positions == "none":
        relative = model.get_layer("block_00").relative_positions
        raise InputError(
            "`positions` of the model must be learned, learned_2d or sincos_2d. "
            f"Received: {model.name} with positions={'relative' if relative else 'none'}."
        )
    zeros = ops.zeros((1, layout.num_tokens, encoder.hidden_dim))
    positions = to_numpy(layer(zeros))[0, layout.num_prefix_tokens :]  # (n, d)
    return cosine_similarities(positions).reshape(*layout.grid, *layout.grid)


def attention_scores(model: keras.Model, images: ArrayLike, block: int = -1) -> np.ndarray:
    """Returns the attention scores of one block.

    Args:
        model: A model made by `vit`.
        images: `(b, h, w, c)`.
        block: Index of the block, from 0; negative indices count from the last block.
    Returns:
        `(b, k, t, t)`: a row for each query, a column for each key. Rows sum to 1.
    Raises:
        InputError: (a ValueError) If the model was not made by `vit`, the images do not have its
            input shape, or there is no such block.
    """
    runner = BlockRunner(model)
    num_blocks = _block_index(block, runner.layout.num_layers) + 1
    return np.concatenate([list(runner.scores(x, num_blocks))[-1] for x in runner.batches(images)])


def head_maps(model: keras.Model, images: ArrayLike, block: int = -1) -> np.ndarray:
    """Returns the attention of each head of one block from the image representation to the patches.

    The query is the class token; without one, scores are averaged over all patches as queries.

    Args:
        model: As for `attention_scores`.
        images: As for `attention_scores`.
        block: As for `attention_scores`.
    Returns:
        `(b, k, rows, columns)`. Including the attention to class token and registers, a head sums
        to 1.
    Raises:
        InputError: (a ValueError) As `attention_scores`.
    Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers".
    """
    runner = BlockRunner(model)
    layout = runner.layout
    num_blocks = _block_index(block, layout.num_layers) + 1
    maps = []
    for x in runner.batches(images):
        for scores in runner.scores(x, num_blocks):
            last = scores
        maps.append(layout.to_grid(layout.pooling_weights @ last))
    return np.concatenate(maps)


def attention_distances(model: keras.Model, images: ArrayLike) -> np.ndarray:
    """Returns the mean attention distance of each head of each block, see `mean_distances`.

    Args:
        model: A model made by `vit`.
        images: `(b, h, w, c)`.
    Returns:
        `(b, blocks, k)`, in pixels of the model's input.
    Raises:
        InputError: (a ValueError) If the model was not made by `vit`, or the images do not have
            its input shape.
    """
    runner = BlockRunner(model)
    grid, stride = runner.layout.grid, runner.layout.stride
    return np.concatenate(
        [
            np.stack([mean_distances(scores, grid, stride) for scores in runner.scores(x)], axis=1)
            for x in runner.batches(images)
        ]
    )


def attention_rollout(model: keras.Model, images: ArrayLike) -> np.ndarray:
    """Returns the weight of each patch in the image representation by attention rollout.

    The image representation is the class token, or else the mean of all patches. See `rollout`.

    Args:
        model: A model made by `vit`.
        images: `(b, h, w, c)`.
    Returns:
        `(b, rows, columns)`. Including the weights of class token and registers, an image sums
        to 1.
    Raises:
        InputError: (a ValueError) If the model was not made by `vit`, or the images do not have
            its input shape.
    Source: Dosovitskiy et al. 2021, figures 6 and 14.
    """
    runner = BlockRunner(model)
    layout = runner.layout
    return np.concatenate(
        [
            layout.to_grid(layout.pooling_weights @ rollout(runner.scores(x)))
            for x in runner.batches(images)
        ]
    )


def class_evidence(model: keras.Model, images: ArrayLike, classes: ArrayLike) -> np.ndarray:
    """Returns the evidence of each patch for a class: rollout of gradient-weighted attention.

    The scores of each block are multiplied by the gradient of the class's logit with respect to
    them. The positive part, averaged over the heads, is propagated through the blocks and their
    residual connections to the image representation: the class token, or else the mean of all
    patches.

    Args:
        model: A model made by `vit`, with a head.
        images: `(b, h, w, c)`.
        classes: Index of a class for each image, `(b,)`.
    Returns:
        `(b, rows, columns)`, nonnegative, without a unit: comparable only within an image.
    Raises:
        InputError: (a ValueError) If the model was not made by `vit` or has no head, the images do
            not have its input shape, a class does not exist, or the backend is neither TensorFlow
            nor JAX.
    Source: Chefer et al. 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal
        and Encoder-Decoder Transformers", the rules for self-attention.
    """
    runner = BlockRunner(model)
    if all(layer.name != "head" for layer in model.layers):
        raise InputError(
            f"`model` must have a head. Received: {model.name}, which returns features."
        )
    images, num_classes = np.asarray(images), model.output_shape[-1]
    classes = np.asarray(classes)
    if (
        classes.shape != images.shape[:1]
        or classes.dtype.kind not in "iu"
        or not ((0 <= classes) & (classes < num_classes)).all()
    ):
        raise InputError(
            f"`classes` must be an integer from 0 to {num_classes - 1} for each image. "
            f"Received: classes={classes.tolist()}, {len(images)} images."
        )
    one_hot, maps, start = np.eye(num_classes, dtype="float32")[classes], [], 0
    for x in runner.batches(images):
        maps.append(_batch_evidence(runner, x, one_hot[start : start + len(x)]))
        start += len(x)
    return np.concatenate(maps)


def _batch_evidence(runner, images, one_hot):
    """Returns `(b, rows, columns)`. Keeps the tokens of all blocks, but the scores of one only."""
    layout = runner.layout
    inputs = runner.inputs(images)
    (gradient,), _ = vector_jacobian_product(
        lambda x: (runner.output_fn(x), None), [inputs.pop()], ops.convert_to_tensor(one_hot)
    )  # (b, t, d)
    shape = (len(images), layout.num_heads, layout.num_tokens, layout.num_tokens)
    initial = np.tile(layout.pooling_weights, (len(images), 1))  # (b, t)
    evidence = initial
    for index in reversed(range(layout.num_layers)):
        x = inputs.pop()
        (gradient, scores_gradient), scores = vector_jacobian_product(
            runner.block_fn(index), [x, ops.zeros(shape, x.dtype)], gradient
        )
        weighted = np.maximum(to_numpy(scores_gradient) * to_numpy(scores), 0)
        evidence = evidence + np.einsum("bq,bqt->bt", evidence, weighted.mean(axis=1))
    return layout.to_grid(evidence - initial)


def token_norms(model: keras.Model, images: ArrayLike) -> np.ndarray:
    """Returns the L2 norm of each token before the first block and after each block.

    Patches of uniform background with a much larger norm than the others act as registers. They
    appear as artifacts in attention maps.

    Args:
        model: A model made by `vit`.
        images: `(b, h, w, c)`.
    Returns:
        `(b, blocks + 1, t)`: class token, registers and patches, as in `TokenLayout`.
    Raises:
        InputError: (a ValueError) If the model was not made by `vit`, or the images do not have
            its input shape.
    Source: Darcet et al. 2024, "Vision Transformers Need Registers", section 2.
    """
    runner = BlockRunner(model)

    def norms(x):
        return np.linalg.norm(to_numpy(x), axis=-1)  # (b, t)

    return np.concatenate(
        [
            np.stack([norms(x) for x in runner.tokens(batch)], axis=1)
            for batch in runner.batches(images)
        ]
    )


def _block_index(block, num_layers):
    """Returns the index of a block, from 0."""
    valid = isinstance(block, int) and -num_layers <= block < num_layers
    check_range("block", block, valid, f"an integer from {-num_layers} to {num_layers - 1}")
    return block % num_layers
