"""`resnet(...)`: the BiT ResNets that the paper compares its Vision Transformers with.

Layer names are a contract: root, stage1_unit01 ..., norm, pool, head. Letters in shapes as in
`layers.py`.
"""

import keras
from keras import ops

from vitkeras.dropping import register
from vitkeras.errors import InputError, check_range, nearest
from vitkeras.models import VisionModel, dtype_policy, head_or_features, image_shape
from vitkeras.stem import AXES, Bottleneck, StdConv2D, group_norm

EPSILON = 1e-5
UNITS = {"R50": (3, 4, 6, 3), "R101": (3, 4, 23, 3), "R152": (3, 8, 36, 3)}

#: Of each ResNet: the units in each stage, and how many times as wide it is as He et al.'s.
#: Source: Dosovitskiy et al. 2021, table 6.
RESNETS = {
    "R50x1": (UNITS["R50"], 1),
    "R50x2": (UNITS["R50"], 2),
    "R101x1": (UNITS["R101"], 1),
    "R152x1": (UNITS["R152"], 1),
    "R152x2": (UNITS["R152"], 2),
}


@register
class BiTConv2D(StdConv2D):
    """A StdConv2D with BiT's conventions: the epsilon stands under the root, and padding is alike.

    As many zeros stand before the first place as behind the last one, where "same" may have fewer.

    Args:
        filters: Channels that come out.
        kernel_size: Side of the kernel, in places; odd.
        strides: In both directions.
    Input shape: `(b, h, w, c)`.
    Output shape: `(b, h / strides, w / strides, filters)`, rounded up.
    Source: Kolesnikov et al. 2020, "Big Transfer (BiT): General Visual Representation Learning";
        https://github.com/google-research/big_transfer.
    """

    def deviation(self, kernel):
        """Returns what the kernel is divided by, `(1, 1, 1, filters)`; never 0."""
        return ops.sqrt(ops.var(kernel, axis=AXES, keepdims=True) + 1e-10)

    def convolve(self, x, kernel):
        """Convolves with a kernel that is standardised already."""
        margin = self.kernel_size // 2
        if self.strides == 1 or not margin:  # then "same" pads alike
            return super().convolve(x, kernel)
        x = ops.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        return super().convolve(x, kernel, "valid")


@register
class PreActBottleneck(Bottleneck):
    """A residual unit of three convolutions, each after a GroupNorm and a ReLU of its input.

    Where the shape changes, the shortcut is a projection of what the first convolution sees.

    Args:
        width: Channels inside; four times as many come out.
        strides: Of the 3x3 convolution, and of the projection where one is needed.
    Input shape: `(b, h, w, c)`.
    Output shape: `(b, h / strides, w / strides, 4 * width)`, rounded up.
    Source: He et al. 2016, "Identity Mappings in Deep Residual Networks", with the norms of
        https://github.com/google-research/big_transfer.
    """

    def build(self, input_shape):
        """Makes the branch, and the projection where the shape changes."""
        policy, wide = self.dtype_policy, 4 * self.width
        inside = (*input_shape[:3], self.width)

        def pair(letter, shape, filters, side, strides=1):
            norm = group_norm(f"norm_{letter}", policy, EPSILON)
            conv = BiTConv2D(filters, side, strides, dtype=policy, name=f"conv_{letter}")
            norm.build(shape)
            conv.build(shape)
            return norm, conv

        self.norm_a, self.conv_a = pair("a", input_shape, self.width, 1)
        self.norm_b, self.conv_b = pair("b", inside, self.width, 3, self.strides)
        self.norm_c, self.conv_c = pair("c", inside, wide, 1)
        self.project = self.changes_shape(input_shape)
        if self.project:
            self.proj = BiTConv2D(wide, 1, self.strides, dtype=policy, name="proj")
            self.proj.build(input_shape)

    def call(self, x):
        """Runs the unit."""
        y = ops.relu(self.norm_a(x))
        if self.project:
            x = self.proj(y)
        y = self.conv_a(y)
        y = self.conv_b(ops.relu(self.norm_b(y)))
        y = self.conv_c(ops.relu(self.norm_c(y)))
        return x + y


def resnet(
    variant: str,
    *,
    image_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    include_top: bool = True,
    dtype=None,
    name: str | None = None,
) -> VisionModel:
    """Builds a BiT ResNet as a functional Keras model.

    Args:
        variant: One of `RESNETS`: depth and width, such as "R50x1".
        image_size: Side in pixels, or (height, width); any.
        num_classes: Number of logits.
        include_top: Without it the output is what the head would see.
        dtype: Keras dtype or policy of all layers, such as "mixed_bfloat16". Logits and features
            are always float32.
        name: Name of the model.
    Input shape: `(b, h, w, 3)`, values in [-1, 1], or uint8 from 0 to 255.
    Output shape: `(b, num_classes)` logits, or `(b, 2048 * width)` features. The head starts at
        zero.
    Raises:
        InputError: (a ValueError) If an argument is unknown or out of range.
    Source: Kolesnikov et al. 2020, "Big Transfer (BiT): General Visual Representation Learning";
        https://github.com/google-research/big_transfer.
    """
    if variant not in RESNETS:
        raise InputError(
            f"`variant` must be one of {', '.join(RESNETS)}. "
            f"Received: variant={variant!r}.{nearest(variant, RESNETS)}"
        )
    if include_top:
        check_range("num_classes", num_classes, num_classes >= 1, "at least 1")
    height, width = image_shape(image_size)
    policy = dtype_policy(dtype)
    num_units, factor = RESNETS[variant]

    # Image to the first stage's input, without norm or activation. BiT pads its max-pool with
    # zeros, which win over what is negative.
    images = keras.Input((height, width, 3), name="images", dtype="float32")
    x = BiTConv2D(64 * factor, 7, 2, dtype=policy, name="root")(images)  # (b, h/2, w/2, c)
    x = keras.layers.ZeroPadding2D(1, dtype=policy, name="root_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, dtype=policy, name="root_pool")(x)  # (b, h/4, w/4, c)

    # Stages, each after the first at half the resolution and twice the width
    for stage, count in enumerate(num_units):
        for unit in range(count):
            x = PreActBottleneck(
                64 * factor * 2**stage,
                strides=2 if stage and not unit else 1,
                dtype=policy,
                name=f"stage{stage + 1}_unit{unit + 1:02d}",
            )(x)
    x = group_norm("norm", policy, EPSILON)(x)
    x = keras.layers.Activation("relu", dtype=policy, name="relu")(x)

    # Places to logits
    x = keras.layers.GlobalAveragePooling2D(dtype=policy, name="pool")(x)  # (b, c)
    x = head_or_features(x, num_classes, include_top)
    return VisionModel(images, x, name=name or f"resnet_{variant.lower()}")
