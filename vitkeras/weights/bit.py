"""BiT's .npz files: the ResNets that the paper compares with.

Source: https://github.com/google-research/big_transfer.
"""

import dataclasses

from vitkeras.errors import InputError
from vitkeras.resnet import RESNETS, resnet
from vitkeras.weights.rules import Rule, count, norm, shape_of

NAME = "BiT .npz"
ROOT = "resnet/root_block/standardized_conv2d/kernel"
#: Arrays that a file may have and a model not.
SPARE = ("global_step",)


@dataclasses.dataclass(frozen=True)
class ResNetFacts:
    """What a file or a model tells of a BiT ResNet.

    Args:
        num_units: Units in each stage.
        factor: Width, of He et al.'s.
        num_classes: Width of the head; None for no head.
    """

    num_units: tuple[int, ...]
    factor: int
    num_classes: int | None = None
    resize: str = "zoom"  # there is nothing to resize

    def build(self, num_classes=None, image_size=None, **options):
        """Returns a fresh model, by default with the width of the head that was there, at 224."""
        sizes = (self.num_units, self.factor)
        variant = next((name for name, known in RESNETS.items() if known == sizes), None)
        if variant is None:
            raise InputError(
                f"A BiT ResNet must be one of {', '.join(RESNETS)}. Received: a file with units "
                f"{self.num_units}, {self.factor} times as wide."
            )
        classes = self.num_classes if num_classes is None else num_classes
        return resnet(
            variant,
            image_size=224 if image_size is None else image_size,
            num_classes=classes or 0,
            include_top=classes is not None,
            **options,
        )


def matches(shapes):
    """Whether these are the names of such a file."""
    return ROOT in shapes


def facts(arrays, config, hint):
    """Returns the `ResNetFacts` of a file."""
    shapes = arrays.shapes
    stages = count(shapes, "resnet/block{}/unit01/a/standardized_conv2d/kernel", 1)
    units = "resnet/block{}/unit{{:02d}}/a/standardized_conv2d/kernel"
    head = "resnet/head/conv2d/kernel"
    return ResNetFacts(
        num_units=tuple(count(shapes, units.format(stage + 1), 1) for stage in range(stages)),
        factor=shape_of(arrays, ROOT, 4)[3] // 64,
        num_classes=shape_of(arrays, head, 4)[3] if head in shapes else None,
    )


def model_facts(model):
    """Returns the `ResNetFacts` of a model made by `resnet`.

    Raises:
        InputError: If it is another.
    """
    names = [layer.name for layer in model.layers]
    units = [name for name in names if name.startswith("stage")]
    if "root" not in names or not units:
        raise InputError(
            "The model must be made by `vit` or `resnet`. "
            f"Received: {model.name}, with the layers {', '.join(names[:3])}, ..."
        )
    stages = int(units[-1][len("stage")])
    return ResNetFacts(
        num_units=tuple(
            sum(name.startswith(f"stage{stage + 1}_") for name in units) for stage in range(stages)
        ),
        factor=model.get_layer("root").filters // 64,
        num_classes=model.get_layer("head").units if "head" in names else None,
    )


def rules(facts):
    """Returns the rules for a model of these facts."""
    channels = 64 * facts.factor
    found = [Rule("root/kernel", (ROOT,), (7, 7, 3, channels))]
    for stage, units in enumerate(facts.num_units, 1):
        width = 64 * facts.factor * 2 ** (stage - 1)
        for unit in range(1, units + 1):
            ours, theirs = f"stage{stage}_unit{unit:02d}", f"resnet/block{stage}/unit{unit:02d}"
            for letter, side, inputs, outputs in (
                ("a", 1, channels, width), ("b", 3, width, width), ("c", 1, width, 4 * width),
            ):  # fmt: skip
                found += [
                    *_norm(f"{ours}/norm_{letter}", f"{theirs}/{letter}", inputs),
                    _conv(f"{ours}/conv_{letter}", f"{theirs}/{letter}", side, inputs, outputs),
                ]
            if unit == 1:  # each stage changes the width
                found.append(_conv(f"{ours}/proj", f"{theirs}/a/proj", 1, channels, 4 * width))
            channels = 4 * width
    found += _norm("norm", "resnet", channels)
    if facts.num_classes is not None:
        classes = facts.num_classes
        found += [
            Rule("head/kernel", ("resnet/head/conv2d/kernel",), (1, 1, channels, classes),
                 shape=(channels, classes)),
            Rule("head/bias", ("resnet/head/conv2d/bias",), (classes,)),
        ]  # fmt: skip
    return found


def _conv(path, name, side, inputs, outputs):
    shape = (side, side, inputs, outputs)
    return Rule(f"{path}/kernel", (f"{name}/standardized_conv2d/kernel",), shape)


def _norm(path, name, width):
    return norm(path, f"{name}/group_norm/gamma", f"{name}/group_norm/beta", width)
