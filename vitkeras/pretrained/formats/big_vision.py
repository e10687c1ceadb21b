"""big_vision's .npz files: class token, mean or attention pooling; learned or fixed positions.

Source: https://github.com/google-research/big_vision, models/vit.py.
"""

import numpy as np

from vitkeras.models.config import ViTConfig
from vitkeras.pretrained.formats import flax
from vitkeras.pretrained.mapping import (
    POSITIONS,
    PretrainedSpec,
    WeightMapping,
    infer_grid,
    require_shape,
)

NAME = "big_vision .npz"
PREFIXES = ("params/", "opt/target/", "")
#: The state of the optimizer.
OPTIONAL = (r"opt/(?!target/).*", r"extra/.*")


def _prefix(shapes):
    return next((p for p in PREFIXES if f"{p}embedding/kernel" in shapes), None)


def matches(shapes):
    """Returns whether these are the names of such a file."""
    prefix = _prefix(shapes)
    if prefix is None:
        return False
    block = f"{prefix}Transformer/encoderblock_0"
    is_flax = f"{block}/MultiHeadDotProductAttention_0/query/kernel" in shapes
    return is_flax and f"{prefix}Transformer/posembed_input/pos_embedding" not in shapes


def read_spec(arrays, config, hints):
    """Returns the `PretrainedSpec` of a file."""
    shapes, prefix = arrays.shapes, _prefix(arrays.shapes)
    patch_size = require_shape(arrays, f"{prefix}embedding/kernel", 4)[0]
    learned = f"{prefix}pos_embedding" in shapes
    grid_hints = hints.get("grid", {})
    if learned:
        positions = require_shape(arrays, f"{prefix}pos_embedding", 3)[1]
        grid = infer_grid(positions, arrays.path, **grid_hints)
    else:  # fixed positions fit any grid
        grid = tuple(grid_hints.get("given") or grid_hints.get("fallback") or (14, 14))
    if f"{prefix}MAPHead_0/probe" in shapes:
        classifier = "map"
    else:
        classifier = "token" if f"{prefix}cls" in shapes else "gap"
    sizes, numbering = flax.encoder_sizes(arrays, prefix)
    model = ViTConfig(
        **sizes,
        **flax.head_fields(arrays, prefix),
        patch_size=patch_size,
        image_size=(grid[0] * patch_size, grid[1] * patch_size),
        classifier=classifier,
        positions="learned" if learned else "sincos_2d",
    )
    return PretrainedSpec(model, naming=(prefix, numbering))


def weight_map(spec):
    """Returns the `WeightMapping`s of a file."""
    config, prefix, d = spec.config, spec.naming[0], spec.config.hidden_dim
    mappings = [*flax.projection(config, prefix), *flax.encoder(spec), *flax.head(config, prefix)]
    if config.positions == "learned":
        n, name = config.grid[0] * config.grid[1], f"{prefix}pos_embedding"
        if config.class_token:  # prepended after the positions are added
            shape, combine = (1, n + 1, d), _with_class_token
            mappings.append(WeightMapping(POSITIONS, (name,), (1, n, d), shape, combine=combine))
        else:
            mappings.append(WeightMapping(POSITIONS, (name,), (1, n, d)))
    if config.class_token:
        mappings.append(WeightMapping("patch_encoder/class_token", (f"{prefix}cls",), (1, 1, d)))
    if config.classifier == "map":
        mappings += _map_head(config, f"{prefix}MAPHead_0")
    return mappings


def _with_class_token(positions):
    """Prepends a zero position for the class token."""
    return np.concatenate([np.zeros_like(positions[:, :1]), positions], axis=1)


def _map_head(config, name):
    """Returns the mappings of attention pooling."""
    d, f, k = config.hidden_dim, config.mlp_dim, config.num_heads
    path, source = "map_head/attention", f"{name}/MultiHeadDotProductAttention_0"
    mappings = [WeightMapping("map_head/probe", (f"{name}/probe",), (1, 1, d))]
    for part in ("query", "key", "value"):
        kernel, bias = f"{source}/{part}/kernel", f"{source}/{part}/bias"
        mappings += [
            WeightMapping(f"{path}/{part}/kernel", (kernel,), (d, k, d // k)),
            WeightMapping(f"{path}/{part}/bias", (bias,), (k, d // k)),
        ]
    out = f"{path}/attention_output"
    return [
        *mappings,
        WeightMapping(f"{out}/kernel", (f"{source}/out/kernel",), (k, d // k, d)),
        WeightMapping(f"{out}/bias", (f"{source}/out/bias",), (d,)),
        *flax.flax_norm("map_head/norm", f"{name}/LayerNorm_0", d),
        *flax.dense("map_head/mlp_in", f"{name}/MlpBlock_0/Dense_0", d, f),
        *flax.dense("map_head/mlp_out", f"{name}/MlpBlock_0/Dense_1", f, d),
    ]
