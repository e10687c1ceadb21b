"""`features(...)`: the feature maps of chosen blocks, for dense tasks."""

import operator
from collections.abc import Sequence

import keras

from vitkeras.arguments import check_range
from vitkeras.errors import InputError
from vitkeras.models.config import ViTConfig, describe_model, model_config
from vitkeras.models.vit import VisionModel


def features(model: keras.Model, layers: Sequence[int] = (-1,), norm: bool = True) -> VisionModel:
    """Builds a functional model that returns the feature maps of chosen blocks.

    It shares layers and weights with `model`.

    Args:
        model: A model made by `vit` or `from_pretrained`, with or without its head.
        layers: Indices of the blocks, from 0; negative indices count from the last block.
        norm: Whether the last norm of the model is applied to each map, as in DINOv2.
    Returns:
        A model with the input of `model`. Its output is a dict, float32, with for block 11:
        "block_11", the patch tokens `(b, rows, columns, d)`; "block_11_class_token", `(b, d)`, if
        there is a class token; "block_11_registers", `(b, num_registers, d)`, if there are any.
    Raises:
        InputError: (a ValueError) If the model was not made by `vit`, there is no such block, or
            `norm` is set for a model that has its last norm after the mean (`gap_norm`).
    Source: Oquab et al. 2023, "DINOv2", `get_intermediate_layers`.
    """
    config = model_config(model)
    if not isinstance(config, ViTConfig):
        raise InputError(
            "`model` must be made by `vit`: a ResNet has stages, such as "
            f'`model.get_layer("stage1_unit01").output`. Received: {describe_model(model)}'
        )
    if norm and config.classifier == "gap_norm":
        raise InputError(
            "`norm` must be False for a model with classifier=gap_norm, which has no norm on its "
            "tokens. Received: norm=True."
        )
    prefix = config.class_token + config.num_registers
    outputs = {}
    for index in sorted(check_blocks("layers", layers, config.num_layers)):
        name = f"block_{index:02d}"
        x = model.get_layer(name).output  # (b, t, d)
        x = model.get_layer("norm")(x) if norm else x
        x = keras.layers.Activation("linear", dtype="float32", name=f"{name}_float32")(x)
        patches = x[:, prefix:] if prefix else x  # (b, n, d)
        reshape = keras.layers.Reshape((*config.grid, config.hidden_dim), dtype="float32")
        outputs[name] = reshape(patches)
        if config.class_token:
            outputs[f"{name}_class_token"] = x[:, 0]
        if config.num_registers:
            outputs[f"{name}_registers"] = x[:, config.class_token : prefix]
    return VisionModel(model.input, outputs, name=f"{model.name}_features")


def check_blocks(name: str, layers: Sequence[int], num_layers: int) -> set[int]:
    """Returns the indices of blocks, from 0.

    Raises:
        InputError: If there is none, or one is not the index of a block.
    """
    try:
        indices = [operator.index(each) for each in layers]
    except TypeError:
        indices = []
    valid = bool(indices) and all(-num_layers <= each < num_layers for each in indices)
    rule = f"a list of integers from {-num_layers} to {num_layers - 1}"
    check_range(name, layers, valid, rule)
    return {each % num_layers for each in indices}
