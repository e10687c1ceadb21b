"""BiT's .npz files: the ResNets that the paper compares with.

Source: https://github.com/google-research/big_transfer.
"""

from vitkeras.models.config import ResNetConfig
from vitkeras.pretrained.mapping import (
    PretrainedSpec,
    WeightMapping,
    count_names,
    norm,
    require_shape,
)

NAME = "BiT .npz"
ROOT = "resnet/root_block/standardized_conv2d/kernel"
HEAD = "resnet/head/conv2d"
OPTIONAL = ("global_step",)


def matches(shapes):
    """Returns whether these are the names of such a file."""
    return ROOT in shapes


def read_spec(arrays, config, hints):
    """Returns the `PretrainedSpec` of a file."""
    shapes = arrays.shapes
    stages = count_names(shapes, "resnet/block{}/unit01/a/standardized_conv2d/kernel", 1)
    units = "resnet/block{}/unit{{:02d}}/a/standardized_conv2d/kernel"
    head = f"{HEAD}/kernel"
    model = ResNetConfig(
        num_units=tuple(count_names(shapes, units.format(s + 1), 1) for s in range(stages)),
        width_factor=require_shape(arrays, ROOT, 4)[3] // 64,
        num_classes=require_shape(arrays, head, 4)[3] if head in shapes else None,
    )
    return PretrainedSpec(model)


def weight_map(spec):
    """Returns the `WeightMapping`s of a file."""
    config = spec.config
    channels = 64 * config.width_factor
    mappings = [WeightMapping("root/kernel", (ROOT,), (7, 7, config.channels, channels))]
    for stage, units in enumerate(config.num_units, 1):
        width = 64 * config.width_factor * 2 ** (stage - 1)
        for unit in range(1, units + 1):
            path, name = f"stage{stage}_unit{unit:02d}", f"resnet/block{stage}/unit{unit:02d}"
            for letter, side, inputs, outputs in (
                ("a", 1, channels, width), ("b", 3, width, width), ("c", 1, width, 4 * width),
            ):  # fmt: skip
                mappings += [
                    *_norm(f"{path}/norm_{letter}", f"{name}/{letter}", inputs),
                    _conv(f"{path}/conv_{letter}", f"{name}/{letter}", side, inputs, outputs),
                ]
            if unit == 1:  # the first unit of each stage changes the width
                mappings.append(_conv(f"{path}/proj", f"{name}/a/proj", 1, channels, 4 * width))
            channels = 4 * width
    mappings += _norm("norm", "resnet", channels)
    if config.num_classes is not None:
        shape = (channels, config.num_classes)
        mappings += [
            WeightMapping("head/kernel", (f"{HEAD}/kernel",), (1, 1, *shape), shape=shape),
            WeightMapping("head/bias", (f"{HEAD}/bias",), (config.num_classes,)),
        ]
    return mappings


def _conv(path, name, side, inputs, outputs):
    shape = (side, side, inputs, outputs)
    return WeightMapping(f"{path}/kernel", (f"{name}/standardized_conv2d/kernel",), shape)


def _norm(path, name, width):
    return norm(path, f"{name}/group_norm/gamma", f"{name}/group_norm/beta", width)
