"""`resnet(...)`: the BiT ResNets that the paper compares its Vision Transformers with.

Layer names are a contract: rescaling, root, stage1_unit01 ..., norm, pool, head.
"""

import keras
from keras import ops

from vitkeras.errors import InputError
from vitkeras.keras_internals import warn_of_inexact_training
from vitkeras.layers.hybrid_stem import KERNEL_AXES, Bottleneck, StdConv2D, group_norm
from vitkeras.layers.regularization import register
from vitkeras.models.config import ResNetConfig
from vitkeras.models.vit import VisionModel, dtype_policy, head_or_features, image_input

EPSILON = 1e-5


@register
class BiTConv2D(StdConv2D):
    """A `StdConv2D` with BiT's conventions: epsilon inside the square root, symmetric padding.

    Keras's "same" padding is asymmetric for strides above 1; this layer pads both sides alike.

    Args:
        filters: Number of output channels.
        kernel_size: Side of the kernel, in pixels; odd.
        strides: Stride in both directions.
    Input shape: `(b, h, w, c)`.
    Output shape: `(b, ceil(h / strides), ceil(w / strides), filters)`.
    Source: Kolesnikov et al. 2020, "Big Transfer (BiT): General Visual Representation Learning";
        https://github.com/google-research/big_transfer.
    """

    def kernel_std(self, kernel):
        """Returns the standard deviation of each filter, `(1, 1, 1, filters)`; never 0."""
        return ops.sqrt(ops.var(kernel, axis=KERNEL_AXES, keepdims=True) + 1e-10)

    def convolve(self, x, kernel, padding="same"):
        """Convolves with a standardized kernel."""
        margin = self.kernel_size // 2
        if self.strides == 1 or not margin:  # "same" pads symmetrically
            return super().convolve(x, kernel)
        x = ops.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        return super().convolve(x, kernel, "valid")


@register
class PreActBottleneck(Bottleneck):
    """A pre-activation bottleneck: three convolutions, each after GroupNorm and ReLU.

    Where the shape changes, the shortcut is a projection of the first activation.

    Args:
        width: Inner channels; the output has four times as many.
        strides: Stride of the 3x3 convolution and of the projection.
    Input shape: `(b, h, w, c)`.
    Output shape: `(b, ceil(h / strides), ceil(w / strides), 4 * width)`.
    Source: He et al. 2016, "Identity Mappings in Deep Residual Networks", with the norms of
        https://github.com/google-research/big_transfer.
    """

    def build(self, input_shape):
        policy, out_channels = self.dtype_policy, 4 * self.width
        inner_shape = (*input_shape[:3], self.width)

        def norm_and_conv(letter, shape, filters, kernel_size, strides=1):
            norm = group_norm(f"norm_{letter}", policy, EPSILON)
            conv = BiTConv2D(filters, kernel_size, strides, dtype=policy, name=f"conv_{letter}")
            norm.build(shape)
            conv.build(shape)
            return norm, conv

        self.norm_a, self.conv_a = norm_and_conv("a", input_shape, self.width, 1)
        self.norm_b, self.conv_b = norm_and_conv("b", inner_shape, self.width, 3, self.strides)
        self.norm_c, self.conv_c = norm_and_conv("c", inner_shape, out_channels, 1)
        self.project = self.changes_shape(input_shape)
        if self.project:
            self.proj = BiTConv2D(out_channels, 1, self.strides, dtype=policy, name="proj")
            self.proj.build(input_shape)

    def call(self, x, training=None):
        warn_of_inexact_training(training)
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
    include_rescaling: bool = True,
    channels: int = 3,
    dtype: str | keras.DTypePolicy | None = None,
    name: str | None = None,
) -> VisionModel:
    """Builds a BiT ResNet as a functional Keras model.

    Args:
        variant: One of `RESNETS`: depth and width factor, such as "R50x1".
        image_size: Side in pixels, or `(height, width)`; any.
        num_classes: Number of logits.
        include_top: Whether the model ends with the head. If False it returns the features.
        include_rescaling: Whether the model takes pixels in [0, 255] and rescales them itself. If
            False it takes values in [-1, 1].
        channels: Channels of the image.
        dtype: Keras dtype or policy of the layers, such as "mixed_bfloat16". Rescaling, logits and
            features are always float32.
        name: Name of the model.
    Input shape: `(b, h, w, channels)`, pixels from 0 to 255 of any numeric dtype.
    Output shape: `(b, num_classes)` logits, or `(b, 2048 * width_factor)` features. The head is
        initialized with zeros.
    Raises:
        InputError: (a ValueError) If an argument is unknown or out of range.
    Source: Kolesnikov et al. 2020, "Big Transfer (BiT): General Visual Representation Learning";
        https://github.com/google-research/big_transfer.
    """
    if include_top and num_classes is None:
        raise InputError("`num_classes` must be a positive integer. Received: num_classes=None.")
    config = ResNetConfig.from_variant(
        variant,
        image_size=image_size,
        channels=channels,
        num_classes=num_classes if include_top else None,
        include_rescaling=include_rescaling,
    )
    return build_resnet(config, dtype=dtype, name=name)


def build_resnet(
    config: ResNetConfig, dtype: str | keras.DTypePolicy | None = None, name: str | None = None
) -> VisionModel:
    """As `vitkeras.models.builder.build_model`, for this kind of config."""
    policy, width = dtype_policy(dtype), 64 * config.width_factor

    # Image to the first stage. BiT pads its max-pool with zeros, not with the minimum.
    images, x = image_input(config)
    x = BiTConv2D(width, 7, 2, dtype=policy, name="root")(x)  # (b, h/2, w/2, c)
    x = keras.layers.ZeroPadding2D(1, data_format="channels_last", dtype=policy, name="root_pad")(x)
    x = keras.layers.MaxPooling2D(
        3, 2, data_format="channels_last", dtype=policy, name="root_pool"
    )(x)  # (b, h/4, w/4, c)

    # Stages, each after the first at half the resolution and twice the width
    for stage, count in enumerate(config.num_units):
        for unit in range(count):
            x = PreActBottleneck(
                width * 2**stage,
                strides=2 if stage and not unit else 1,
                dtype=policy,
                name=f"stage{stage + 1}_unit{unit + 1:02d}",
            )(x)
    x = group_norm("norm", policy, EPSILON)(x)
    x = keras.layers.Activation("relu", dtype=policy, name="relu")(x)

    # Feature map to logits
    x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype=policy, name="pool")(
        x
    )  # (b, c)
    x = head_or_features(x, config.num_classes)
    default_name = f"resnet_{(config.variant or 'bit').lower()}"
    model = VisionModel(images, x, name=name or default_name)
    model.config = config
    return model
