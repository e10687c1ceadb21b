"""timm's safetensors files of a VisionTransformer, with or without LayerScale and registers.

Source: https://github.com/huggingface/pytorch-image-models, timm/models/vision_transformer.py.
"""

import functools
import math
import re

import numpy as np

from vitkeras.errors import InputError
from vitkeras.models.config import ViTConfig
from vitkeras.pretrained.mapping import (
    INCEPTION_MEAN_STD,
    POSITIONS,
    PretrainedSpec,
    WeightMapping,
    count_names,
    infer_grid,
    infer_num_heads,
    require_shape,
    square_patches,
    torch_dense,
    torch_norm,
    torch_projection,
)

NAME = "timm safetensors"
OPTIONAL = ()
GELUS = {"gelu": "exact", "gelu_tanh": "tanh"}
#: Number of heads by a part of the architecture's name, where the sizes suggest another number.
NUM_HEADS = {
    "vit_base_patch16_gap_": 16, "so400m": 16, "giantopt": 16,
    "test_vit3": 3, "test_vit4": 3, "test_vit": 2,
}  # fmt: skip
#: Architectures with tanh GELU.
TANH = r"patch32_siglip|large_patch16_siglip_(gap_)?512|so400m_patch16|giantopt"


def matches(shapes):
    """Returns whether these are the names of such a file."""
    return "patch_embed.proj.weight" in shapes and "blocks.0.attn.qkv.weight" in shapes


def read_spec(arrays, config, hints):
    """Returns the `PretrainedSpec` of a file; `config` has the content of its JSON files."""
    shapes, path = arrays.shapes, arrays.path
    d, patch_size = square_patches(arrays, "patch_embed.proj.weight")
    if "dist_token" in shapes:
        raise InputError(f"A timm model must have no distillation token. Received: {path}.")
    model_args = config.get("model_args") or {}
    mlp_dim = require_shape(arrays, "blocks.0.mlp.fc1.weight", 2)[0]
    num_layers = count_names(shapes, "blocks.{}.norm1.weight")
    class_token = "cls_token" in shapes
    registers = require_shape(arrays, "reg_token", 3)[1] if "reg_token" in shapes else 0
    fc_norm = "fc_norm.weight" in shapes
    pooling = config.get("global_pool", "token" if class_token else "avg")
    if pooling not in ("token", "avg") or (pooling == "token") != class_token:
        raise InputError(
            "A timm model must have a class token and use it, or have none and use mean pooling. "
            f"Received: {path}, with global_pool={pooling!r} and "
            f"{'a' if class_token else 'no'} class token."
        )
    if fc_norm and class_token:
        raise InputError(
            "A timm model with a class token must have its norm before the pooling. "
            f"Received: {path}, with fc_norm and cls_token."
        )
    positions = require_shape(arrays, "pos_embed", 3)[1]
    size = model_args.get("img_size") or config.get("pretrained_cfg", {}).get("input_size", ())[-2:]
    grid_hints = {**hints.get("grid", {}), "stated": _stated_grid(size, patch_size)}
    num_prefix, grid = _split_positions(positions, class_token, registers, path, grid_hints)
    sizes = (d, mlp_dim, num_layers)
    num_heads, warnings = _num_heads(sizes, path, config, model_args, hints)
    if not config:
        warnings += (
            f"There is no config.json beside {path}. Assumed: exact GELU, epsilon 1e-6 and images "
            "in [-1, 1]. Pass `mean_std` for another normalization.",
        )
    model = ViTConfig(
        hidden_dim=d,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        num_layers=num_layers,
        patch_size=patch_size,
        image_size=(grid[0] * patch_size, grid[1] * patch_size),
        classifier="token" if class_token else "gap_norm" if fc_norm else "gap",
        num_registers=registers,
        layer_scale=1.0 if "blocks.0.ls1.gamma" in shapes else None,
        num_classes=require_shape(arrays, "head.weight", 2)[0] if "head.weight" in shapes else None,
        gelu=_gelu(config, model_args, path),
    )
    return PretrainedSpec(
        model,
        position_resize="bicubic_antialias",
        mean_std=_mean_std(config),
        naming=("fc_norm" if fc_norm else "norm", num_prefix),
        warnings=warnings,
    )


def _mean_std(config):
    cfg = config.get("pretrained_cfg", {})
    return (tuple(cfg["mean"]), tuple(cfg["std"])) if {"mean", "std"} <= set(cfg) else (
        INCEPTION_MEAN_STD
    )  # fmt: skip


def _stated_grid(size, patch_size):
    """Returns the grid of an image size in config.json, or None."""
    size = (size, size) if isinstance(size, int) else tuple(size)
    return tuple(side // patch_size for side in size) if len(size) == 2 else None


def _num_heads(sizes, path, config, model_args, hints):
    """Returns the number of heads and warnings."""
    hints, architecture = dict(hints.get("num_heads", {})), config.get("architecture", "")
    if hints.get("given") is None:
        known = (number for part, number in NUM_HEADS.items() if part in architecture)
        hints["given"] = model_args.get("num_heads", next(known, None))
    return infer_num_heads(sizes, path, **hints)


def _gelu(config, model_args, path):
    """Returns which GELU a timm model has.

    Raises:
        InputError: If it has another activation, norm or block.
    """
    tanh = re.search(TANH, config.get("architecture", ""))
    activation = model_args.get("act_layer", "gelu_tanh" if tanh else "gelu")
    if activation not in GELUS or model_args.get("norm_layer") or model_args.get("block_fn"):
        raise InputError(
            f"A timm model must have `act_layer` {' or '.join(GELUS)} and timm's default "
            f"`norm_layer` and `block_fn`. Received: {path}, with model_args {model_args}."
        )
    return GELUS[activation]


def _split_positions(positions, class_token, registers, path, hints):
    """Returns how many position embeddings belong to prefix tokens, and the grid of the others.

    timm has positions for all prefix tokens, for the class token only, or for none of them.
    """
    options = dict.fromkeys((class_token + registers, int(class_token), 0))
    for grid in (hints.get("given"), hints["stated"]):
        if grid is not None and positions - grid[0] * grid[1] in options:
            return positions - grid[0] * grid[1], tuple(grid)
    if class_token and not registers:
        options = (1,)  # otherwise 14 x 16 patches and a class token would be read as 15 x 15
    for num_prefix in options:
        if math.isqrt(positions - num_prefix) ** 2 == positions - num_prefix:
            return num_prefix, infer_grid(positions - num_prefix, path, hints.get("given"))
    fallback = hints.get("fallback")
    if fallback is not None and positions - fallback[0] * fallback[1] in options:
        return positions - fallback[0] * fallback[1], tuple(fallback)
    grid = infer_grid(positions - int(class_token), path, hints.get("given"))
    return int(class_token), grid


def weight_map(spec):
    """Returns the `WeightMapping`s of a file."""
    config, (last_norm, num_prefix) = spec.config, spec.naming
    d, f = config.hidden_dim, config.mlp_dim
    n, registers = config.grid[0] * config.grid[1], config.num_registers
    table_shape = (1, num_prefix + n, d)
    mappings = [
        *torch_projection("patch_embed.proj", config),
        WeightMapping(
            POSITIONS,
            ("pos_embed",),
            table_shape,
            (1, config.class_token + n, d),
            combine=functools.partial(_read_positions, config.class_token, num_prefix),
        ),
    ]
    if config.class_token:
        mappings.append(WeightMapping("patch_encoder/class_token", ("cls_token",), (1, 1, d)))
    if registers:
        path, shape = "patch_encoder/registers", (1, registers, d)
        if num_prefix > config.class_token:
            combine = functools.partial(_read_registers, config.class_token, registers)
            names, shapes = ("reg_token", "pos_embed"), (shape, table_shape)
            mappings.append(
                WeightMapping(path, names, shape=shape, file_shapes=shapes, combine=combine)
            )
        else:
            mappings.append(WeightMapping(path, ("reg_token",), shape))
    for i in range(config.num_layers):
        path, name = f"block_{i:02d}", f"blocks.{i}"
        mappings += [
            *torch_norm(f"{path}/attention_norm", f"{name}.norm1", d),
            *torch_dense(f"{path}/attention/qkv", f"{name}.attn.qkv", d, 3 * d),
            *torch_dense(f"{path}/attention/out", f"{name}.attn.proj", d, d),
            *torch_norm(f"{path}/mlp_norm", f"{name}.norm2", d),
            *torch_dense(f"{path}/mlp_in", f"{name}.mlp.fc1", d, f),
            *torch_dense(f"{path}/mlp_out", f"{name}.mlp.fc2", f, d),
        ]
        if config.layer_scale is not None:
            mappings += [
                WeightMapping(f"{path}/attention_scale/gamma", (f"{name}.ls1.gamma",), (d,)),
                WeightMapping(f"{path}/mlp_scale/gamma", (f"{name}.ls2.gamma",), (d,)),
            ]
    mappings += torch_norm("norm", last_norm, d)
    if config.num_classes is not None:
        mappings += torch_dense("head", "head", d, config.num_classes)
    return mappings


def _read_positions(class_token, num_prefix, table):
    """Drops the positions of registers and adds a zero one for a class token without position."""
    patches = table[:, num_prefix:]
    if not class_token:
        return patches
    token = table[:, :1] if num_prefix else np.zeros_like(patches[:, :1])
    return np.concatenate([token, patches], axis=1)


def _read_registers(class_token, registers, tokens, table):
    """Adds the positions of the registers to the registers, which have none in our models."""
    return tokens + table[:, class_token : class_token + registers]
