"""Google's .npz files: ViT, AugReg, SAM and hybrids, as in the vit_models bucket.

Source: https://github.com/google-research/vision_transformer.
"""

from vitkeras.errors import InputError
from vitkeras.layers.hybrid_stem import stem_stride
from vitkeras.models.config import ViTConfig
from vitkeras.pretrained.formats import flax
from vitkeras.pretrained.mapping import (
    POSITIONS,
    PretrainedSpec,
    WeightMapping,
    count_names,
    infer_grid,
    require_shape,
)

NAME = "Google .npz"
POSITIONS_ARRAY = "Transformer/posembed_input/pos_embedding"
OPTIONAL = ()


def matches(shapes):
    """Returns whether these are the names of such a file."""
    return POSITIONS_ARRAY in shapes and "embedding/kernel" in shapes


def read_spec(arrays, config, hints):
    """Returns the `PretrainedSpec` of a file."""
    shapes = arrays.shapes
    patch_size = require_shape(arrays, "embedding/kernel", 4)[0]
    positions = require_shape(arrays, POSITIONS_ARRAY, 3)[1]
    class_token, stem_units = "cls" in shapes, None
    if "conv_root/kernel" in shapes:
        stages = count_names(shapes, "block{0}/unit1/conv1/kernel", 1)
        stem_units = tuple(
            count_names(shapes, f"block{s + 1}/unit{{}}/conv1/kernel", 1) for s in range(stages)
        )
    sizes, numbering = flax.encoder_sizes(arrays)
    grid = infer_grid(positions - class_token, arrays.path, **hints.get("grid", {}))
    stride = patch_size * stem_stride(stem_units)
    model = ViTConfig(
        **sizes,
        **flax.head_fields(arrays),
        patch_size=patch_size,
        stem_units=stem_units,
        image_size=(grid[0] * stride, grid[1] * stride),
        classifier="token" if class_token else "gap",
    )
    return PretrainedSpec(model, naming=("", numbering))


def weight_map(spec):
    """Returns the `WeightMapping`s of a file."""
    config, d = spec.config, spec.config.hidden_dim
    positions = config.grid[0] * config.grid[1] + config.class_token
    mappings = [
        *flax.projection(config),
        WeightMapping(POSITIONS, (POSITIONS_ARRAY,), (1, positions, d)),
        *flax.encoder(spec),
        *flax.head(config),
    ]
    if config.class_token:
        mappings.append(WeightMapping("patch_encoder/class_token", ("cls",), (1, 1, d)))
    if config.stem_units is not None:
        mappings += _stem(config)
    return mappings


def _stem(config):
    """Returns the mappings of a hybrid's ResNet stem."""
    mappings = [
        WeightMapping("stem/root/kernel", ("conv_root/kernel",), (7, 7, config.channels, 64)),
        *flax.flax_norm("stem/root_norm", "gn_root", 64),
    ]
    channels = 64
    for stage, units in enumerate(config.stem_units, 1):
        width = 64 * 2 ** (stage - 1)
        for unit in range(1, units + 1):
            unit_path, unit_name = f"stem/stage{stage}_unit{unit}", f"block{stage}/unit{unit}"
            convolutions = [
                ("1", 1, channels, width), ("2", 3, width, width), ("3", 1, width, 4 * width),
            ]  # fmt: skip
            if unit == 1:  # the first unit of each stage changes the width
                convolutions.append(("_proj", 1, channels, 4 * width))
            for suffix, side, inputs, outputs in convolutions:
                path = f"{unit_path}/conv{suffix}/kernel"
                name = f"{unit_name}/conv{suffix}/kernel"
                mappings += [
                    WeightMapping(path, (name,), (side, side, inputs, outputs)),
                    *flax.flax_norm(
                        f"{unit_path}/norm{suffix}", f"{unit_name}/gn{suffix}", outputs
                    ),
                ]
            channels = 4 * width
    return mappings


def writable_spec(config):
    """Returns the spec of a model with the names of the published files."""
    return PretrainedSpec(config, naming=("", flax.BY_POSITION))


def check_writable(config):
    """Checks that the authors' code can hold such a model.

    Raises:
        InputError: If it cannot.
    """
    unsupported = [
        text
        for wrong, text in (
            (config.classifier not in ("token", "gap"), f"classifier={config.classifier}"),
            (config.positions != "learned", f"positions={config.positions}"),
            (config.positions_at != "input", f"positions_at={config.positions_at}"),
            (config.num_registers, f"num_registers={config.num_registers}"),
            (config.layer_scale is not None, f"layer_scale={config.layer_scale}"),
            (config.gelu != "tanh", f"gelu={config.gelu}"),
            (config.epsilon != 1e-6, f"epsilon={config.epsilon}"),
            (config.channels != 3, f"channels={config.channels}"),
        )
        if wrong
    ]
    if unsupported:
        raise InputError(
            "A Google .npz file holds a ViT or hybrid with class token or mean pooling, learned "
            "positions, tanh GELU and epsilon 1e-6. "
            f"Received: a model with {', '.join(unsupported)}. Save it with `model.save`."
        )
