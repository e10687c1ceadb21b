"""What fine-tuning does to a part of a model: `freeze(model, what)`, and rates layer by layer.

Both go by the names of the layers, which are a contract. From the image to the logits, stem and
patch encoder have depth 0, block i has i + 1, and what comes after the last of L blocks L + 1.
"""

import re

from vitkeras.errors import InputError

HEAD = "head"
INPUT_LAYERS = ("stem", "patches", "patch_encoder", "positions")


def count_blocks(layers):
    """Returns L from the names of layers, of which the first blocks may be missing."""
    return max((_number(layer) + 1 for layer in layers), default=0)


def depth(layer, num_blocks):
    """Returns the depth of a layer by its name; `num_blocks` is L."""
    if layer in INPUT_LAYERS:
        return 0
    number = _number(layer)
    return num_blocks + 1 if number < 0 else number + 1


def _number(layer):
    """Returns i of block i and of the positions before it, -1 of anything else."""
    match = re.fullmatch(r"(?:block|positions)_(\d+)", layer)
    return int(match[1]) if match else -1


def freeze(model, what):
    """Keeps a part of a model from training, and lets the rest train. Call it before `compile`.

    The head is the layer `head` alone, the one that `transfer_weights` leaves fresh. The last norm,
    MAP head and pre_logits belong to what was learned, so a model with a frozen backbone is a
    linear probe of what `include_top=False` gives. Dropout acts in frozen layers too.

    Args:
        model: Changed in place.
        what: None for nothing; "backbone", all but the head; or "blocks:K", stem, patch encoder and
            the first K blocks of a ViT.
    Raises:
        InputError: (a ValueError) If `what` is none of these, there are fewer blocks, or nothing
            would be left to train.
    """
    frozen = _frozen([layer.name for layer in model.layers], what)
    for layer in model.layers:
        layer.trainable = layer.name in frozen  # TensorFlow would take the next line for done
        layer.trainable = layer.name not in frozen


def _frozen(layers, what):
    """Returns the names of the layers that `what` stands for."""
    if what is None:
        return set()
    if what == "backbone" and HEAD in layers:
        return set(layers) - {HEAD}
    num_blocks = count_blocks(layers)
    match = re.fullmatch(r"blocks:(\d+)", str(what))
    if not match or not num_blocks or int(match[1]) > num_blocks:
        raise InputError(
            "`freeze` must be backbone, in a model with a head, or blocks:K, with K up to the "
            f"number of blocks. Received: freeze={what!r}, a model "
            f"{'with' if HEAD in layers else 'without'} head, {num_blocks} blocks."
        )
    return {layer for layer in layers if depth(layer, num_blocks) <= int(match[1])}


def layer_factors(paths, layer_decay):
    """Returns what the rate of each weight is multiplied by: `layer_decay ** (L + 1 - depth)`.

    Args:
        paths: Of the weights that train, each beginning with its layer's name.
        layer_decay: The rate of each block over that of the next one.
    Raises:
        InputError: If there is no block among them.
    """
    layers = [path.partition("/")[0] for path in paths]
    num_blocks = count_blocks(layers)
    if not num_blocks:
        raise InputError(
            "`layer_decay` below 1 needs blocks that train, as those of a ViT. "
            f"Received: layer_decay={layer_decay}, trained layers {sorted(set(layers))[:5]}."
        )
    return [layer_decay ** (num_blocks + 1 - depth(layer, num_blocks)) for layer in layers]
