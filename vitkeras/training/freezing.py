"""Freezing parts of a model, and learning rates per layer.

Both use the names of the layers, which are a contract. The depth of stem and patch encoder is 0,
that of block i is i + 1, and that of all layers after the last of L blocks is L + 1.
"""

import re
from collections.abc import Iterable, Sequence

import keras

from vitkeras.errors import InputError
from vitkeras.models.config import check_model

HEAD = "head"
INPUT_LAYERS = ("stem", "patches", "patch_encoder", "positions")


def count_blocks(layers: Iterable[str]) -> int:
    """Returns the number of blocks from names of layers, of which the first may be missing."""
    return max((_block_index(layer) + 1 for layer in layers), default=0)


def depth(layer: str, num_blocks: int) -> int:
    """Returns the depth of a layer, 0 to `num_blocks` + 1, from its name."""
    if layer in INPUT_LAYERS:
        return 0
    index = _block_index(layer)
    return num_blocks + 1 if index < 0 else index + 1


def _block_index(layer):
    """Returns i for block i and the positions before it, -1 for any other layer."""
    match = re.fullmatch(r"(?:block|positions)_(\d+)", layer)
    return int(match[1]) if match else -1


def check_freeze(what: str | None, num_blocks: int) -> None:
    """Checks that a model with `num_blocks` blocks (0 for a ResNet) can be frozen in this way.

    Raises:
        InputError: If `what` is not None, "backbone" or "blocks:K", or there are fewer than K
            blocks.
    """
    if what in (None, "backbone"):
        return
    match = re.fullmatch(r"blocks:(\d+)", str(what))
    if not match or not num_blocks or int(match[1]) > num_blocks:
        raise InputError(
            "`freeze` must be backbone, or blocks:K with K at most the number of blocks. "
            f"Received: freeze={what!r}, a model with {num_blocks} blocks."
        )


def freeze(model: keras.Model, what: str | None) -> None:
    """Freezes a part of a model and unfreezes the rest. Call it before `compile`.

    The head is only the layer `head`, which `transfer_weights` leaves at its initial values. Last
    norm, MAP head and pre_logits belong to the backbone, so that a model with a frozen backbone is
    a linear probe of the features of `include_top=False`. Dropout is active in frozen layers too.

    Args:
        model: The model, changed in place.
        what: None for nothing; "backbone" for all but the head; "blocks:K" for stem, patch encoder
            and the first K blocks of a ViT.
    Raises:
        InputError: (a ValueError) If `what` is none of these, the model has fewer blocks or is not
            a Keras model, or "backbone" is given for a model without a head.
    """
    check_model(model)
    layers = [layer.name for layer in model.layers]
    num_blocks = count_blocks(layers)
    check_freeze(what, num_blocks)
    if what is None:
        frozen = set()
    elif what == "backbone":
        if HEAD not in layers:
            raise InputError(
                "`freeze=backbone` needs a model with a head. "
                f"Received: freeze={what!r}, a model without head."
            )
        frozen = set(layers) - {HEAD}
    else:
        num_frozen = int(what.partition(":")[2])
        frozen = {layer for layer in layers if depth(layer, num_blocks) <= num_frozen}
    for layer in model.layers:
        # On the TensorFlow backend a no-op assignment is skipped and would not reach sublayers.
        layer.trainable = layer.name in frozen
        layer.trainable = layer.name not in frozen


def layer_factors(paths: Sequence[str], layer_decay: float) -> list[float]:
    """Returns the factor of the learning rate of each weight: `layer_decay ** (L + 1 - depth)`.

    Args:
        paths: Paths of the trainable weights, each starting with the name of its layer.
        layer_decay: Ratio of the learning rates of a block and the next one.
    Raises:
        InputError: If no block is among them.
    """
    layers = [path.partition("/")[0] for path in paths]
    num_blocks = count_blocks(layers)
    if not num_blocks:
        raise InputError(
            "`layer_decay` must be 1 unless blocks of a ViT are trained. "
            f"Received: layer_decay={layer_decay}, trained layers {sorted(set(layers))[:5]}."
        )
    return [layer_decay ** (num_blocks + 1 - depth(layer, num_blocks)) for layer in layers]
