"""What a trained ViT has learned and where it looks: from a model and images to arrays.

Images are `(b, h, w, 3)` of the model's size: uint8, or floats in [-1, 1]. They are looked at a few
at a time, so that memory is bounded by what is returned. Attention comes from the model's own
layers, of which one at a time keeps its scores.

Letters in shapes as in `layers.py`.
"""

import numpy as np
from keras import ops

from vitkeras.analysis.arrays import cosine_similarities, mean_distances, rollout
from vitkeras.analysis.gradients import pull_back
from vitkeras.analysis.parts import Parts, layout, to_numpy
from vitkeras.errors import InputError


def first_filters(model):
    """Returns the filters that see the image itself, each as a small picture.

    Of a ViT the patch projection; of a hybrid, whose projection sees no colours, the first
    convolution of its stem, standardised as it is used.

    Args:
        model: Made by `vit`.
    Returns:
        `(d, p, p, 3)`, or `(width of the stem, 7, 7, 3)`.
    Raises:
        InputError: (a ValueError) If the model is not made by `vit`.
    """
    layout(model)
    stem = next((each for each in model.layers if each.name == "stem"), None)
    if stem is None:
        side = model.get_layer("patches").patch_size
        kernel = to_numpy(model.get_layer("patch_encoder").projection.kernel)  # (p*p*3, d)
        kernel = kernel.reshape(side, side, 3, -1)
    else:
        kernel = ops.convert_to_tensor(stem.root.kernel)
        mean = ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
        kernel = to_numpy((kernel - mean) / stem.root.deviation(kernel))  # (7, 7, 3, width)
    return kernel.transpose(3, 0, 1, 2)


def position_similarity(model):
    """Returns how alike the position embeddings of each two patches are: the cosine between them.

    Of a model that adds positions of their own before every block, those before the first.

    Args:
        model: Made by `vit`.
    Returns:
        `(rows, columns, rows, columns)`.
    Raises:
        InputError: (a ValueError) If the model is not made by `vit`, or adds no positions.
    Source: Dosovitskiy et al. 2021, figure 7, centre, and figure 10.
    """
    tokens, names = layout(model), {each.name for each in model.layers}
    encoder = model.get_layer("patch_encoder")
    layer = encoder.positions
    for name in ("positions", "positions_00"):
        if name in names:
            layer = model.get_layer(name)
    if layer.positions == "none":
        kind = "relative ones" if model.get_layer("block_00").relative_positions else "none"
        raise InputError(
            "Only positions that are added to the tokens can be compared. "
            f"Received: {model.name}, which has {kind}."
        )
    none = ops.zeros((1, tokens.num_tokens, encoder.hidden_dim))
    table = to_numpy(layer(none))[0, tokens.num_prefix_tokens :]  # (n, d)
    return cosine_similarities(table).reshape(*tokens.grid, *tokens.grid)


def attention_scores(model, images, block=-1):
    """Returns the attention of one block.

    Args:
        model: Made by `vit`.
        images: `(b, h, w, 3)`.
        block: Number of the block, from 0; below 0 from the last.
    Returns:
        `(b, k, t, t)`: for each query a row over the keys, which sums to 1.
    Raises:
        InputError: (a ValueError) If the model is not made by `vit`, the images are not of its
            size, or there is no such block.
    """
    parts = Parts(model)
    upto = _number(block, parts) + 1
    return np.concatenate([list(parts.scores(x, upto))[-1] for x in parts.batches(images)])


def head_maps(model, images, block=-1):
    """Returns where each head of one block looks, from the token that represents the image.

    That is the class token, or else the mean over all patches as queries.

    Args:
        model, images, block: As for `attention_scores`.
    Returns:
        `(b, k, rows, columns)`: attention to each patch. With what goes to class token and
        registers, which have no place, a head's sum is 1.
    Raises:
        InputError: (a ValueError) As `attention_scores`.
    Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers".
    """
    parts = Parts(model)
    tokens, upto = parts.layout, _number(block, parts) + 1
    maps = []
    for x in parts.batches(images):
        for scores in parts.scores(x, upto):
            last = scores
        maps.append(tokens.on_grid(tokens.query @ last))
    return np.concatenate(maps)


def attention_distances(model, images):
    """Returns how far each head of each block looks, as `mean_distances`.

    Args:
        model: Made by `vit`.
        images: `(b, h, w, 3)`.
    Returns:
        `(b, blocks, k)`, in pixels of the model's image.
    Raises:
        InputError: (a ValueError) If the model is not made by `vit`, or the images are not of its
            size.
    """
    parts = Parts(model)
    grid, stride = parts.layout.grid, parts.layout.stride
    return np.concatenate(
        [
            np.stack([mean_distances(scores, grid, stride) for scores in parts.scores(x)], axis=1)
            for x in parts.batches(images)
        ]
    )


def attention_rollout(model, images):
    """Returns how much each patch enters what represents the image, as `rollout` follows it.

    That is the class token, or else the mean over all patches.

    Args:
        model: Made by `vit`.
        images: `(b, h, w, 3)`.
    Returns:
        `(b, rows, columns)`. With what comes from class token and registers a sum is 1.
    Raises:
        InputError: (a ValueError) If the model is not made by `vit`, or the images are not of its
            size.
    Source: Dosovitskiy et al. 2021, figures 6 and 14.
    """
    parts = Parts(model)
    tokens = parts.layout
    return np.concatenate(
        [tokens.on_grid(tokens.query @ rollout(parts.scores(x))) for x in parts.batches(images)]
    )


def class_evidence(model, images, classes):
    """Returns how much each patch speaks for a class: rollout of attention weighted by gradient.

    Of each block, attention is multiplied by the gradient of the class's logit for it; what is
    positive, as a mean over the heads, is followed through the blocks and their residual
    connections to what represents the image: the class token, or else the mean over all patches.

    Args:
        model: Made by `vit`, with a head.
        images: `(b, h, w, 3)`.
        classes: The number of a class for each image.
    Returns:
        `(b, rows, columns)`, 0 or more, in no unit: to be compared inside an image.
    Raises:
        InputError: (a ValueError) If the model is not made by `vit` or has no head, the images are
            not of its size, there is no such class, or Keras's backend has no gradients here.
    Source: Chefer et al. 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal
        and Encoder-Decoder Transformers", its rules for self-attention.
    """
    parts = Parts(model)
    if all(each.name != "head" for each in model.layers):
        raise InputError(
            "Evidence is for a class: the model must have a head. "
            f"Received: {model.name}, which gives features."
        )
    images, num_classes = np.asarray(images), model.output_shape[-1]
    classes = np.asarray(classes)
    if (
        classes.shape != images.shape[:1]
        or classes.dtype.kind not in "iu"
        or not ((0 <= classes) & (classes < num_classes)).all()
    ):
        raise InputError(
            f"`classes` must be one whole number from 0 to {num_classes - 1} for each image. "
            f"Received: classes={classes.tolist()}, {len(images)} images."
        )
    one_hot, maps, begin = np.eye(num_classes, dtype="float32")[classes], [], 0
    for x in parts.batches(images):
        maps.append(_evidence(parts, x, one_hot[begin : begin + len(x)]))
        begin += len(x)
    return np.concatenate(maps)


def _evidence(parts, images, one_hot):
    """Returns `(b, rows, columns)`; keeps the tokens of all blocks, but the scores of one only."""
    tokens = parts.layout
    inputs = parts.inputs(images)
    (gradient,), _ = pull_back(
        lambda x: (parts.tail(x), None), [inputs.pop()], ops.convert_to_tensor(one_hot)
    )  # (b, t, d)
    shape = (len(images), tokens.num_heads, tokens.num_tokens, tokens.num_tokens)
    start = np.tile(tokens.query, (len(images), 1))  # (b, t)
    flow = start
    for index in reversed(range(tokens.num_layers)):
        x = inputs.pop()
        (gradient, of_scores), scores = pull_back(
            parts.through(index), [x, ops.zeros(shape, x.dtype)], gradient
        )
        weighted = np.maximum(to_numpy(of_scores) * to_numpy(scores), 0).mean(axis=1)  # (b, t, t)
        flow = flow + np.einsum("bq,bqt->bt", flow, weighted)
    return tokens.on_grid(flow - start)


def token_norms(model, images):
    """Returns the length of each token's vector before the first block and after each one.

    Patches of a uniform background whose vectors grow much longer than others serve the model as
    registers, and show in its maps.

    Args:
        model: Made by `vit`.
        images: `(b, h, w, 3)`.
    Returns:
        `(b, blocks + 1, t)`: class token, registers, patches, as `layout` has them.
    Raises:
        InputError: (a ValueError) If the model is not made by `vit`, or the images are not of its
            size.
    Source: Darcet et al. 2024, "Vision Transformers Need Registers", section 2.
    """
    parts = Parts(model)

    def norms(x):
        return np.linalg.norm(to_numpy(x), axis=-1)  # (b, t)

    return np.concatenate(
        [np.stack([norms(x) for x in parts.tokens(b)], axis=1) for b in parts.batches(images)]
    )


def _number(block, parts):
    """Returns the number of a block, from 0."""
    count = len(parts.blocks)
    if not isinstance(block, int) or not -count <= block < count:
        raise InputError(
            f"`block` must be a number from 0 to {count - 1}, or from -{count} to -1 from the "
            f"last. Received: block={block!r}."
        )
    return block % count
