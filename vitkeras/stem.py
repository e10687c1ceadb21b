"""The ResNet in front of a hybrid ViT, and the convolution that it shares with the BiT ResNets.

Letters in shapes as in `layers.py`.
"""

import keras
from keras import ops

from vitkeras.dropping import register

GROUPS = 32
EPSILON = 1e-6
AXES = (0, 1, 2)  # of a kernel, all but its outputs


@register
class StdConv2D(keras.layers.Layer):
    """A convolution without bias whose kernel is standardised: mean 0, deviation 1 per output.

    The kernel is standardised in float32, also under mixed precision. Padding is "same". The
    conventions are those of the hybrids; BiT's differ in `deviation` and `convolve`.

    Args:
        filters: Channels that come out.
        kernel_size: Side of the kernel, in places.
        strides: In both directions.
    Input shape: `(b, h, w, c)`.
    Output shape: `(b, h / strides, w / strides, filters)`, rounded up.
    Source: Qiao et al. 2019, "Micro-Batch Training with Batch-Channel Normalization and Weight
        Standardization"; https://github.com/google-research/vision_transformer.
    """

    def __init__(self, filters, kernel_size, strides=1, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.kernel_size = int(filters), int(kernel_size)
        self.strides = int(strides)

    def build(self, input_shape):
        """Makes the kernel `(side, side, c, filters)`."""
        self.kernel = self.add_weight(
            shape=(self.kernel_size, self.kernel_size, input_shape[-1], self.filters),
            initializer="lecun_normal",
            name="kernel",
            autocast=False,  # else it would be rounded before it is standardised
        )

    def compute_output_shape(self, input_shape):
        """`(b, h / strides, w / strides, filters)`."""
        height, width = (None if s is None else -(-s // self.strides) for s in input_shape[1:3])
        return input_shape[0], height, width, self.filters

    def deviation(self, kernel):
        """Returns what the kernel is divided by, `(1, 1, 1, filters)`; never 0."""
        return ops.std(kernel, axis=AXES, keepdims=True) + 1e-5

    def convolve(self, x, kernel, padding="same"):
        """Convolves with a kernel that is standardised already."""
        return ops.conv(x, kernel, self.strides, padding, data_format="channels_last")

    def call(self, x):
        """Standardises the kernel, then convolves."""
        kernel = ops.convert_to_tensor(self.kernel)
        mean = ops.mean(kernel, axis=AXES, keepdims=True)
        return self.convolve(x, ops.cast((kernel - mean) / self.deviation(kernel), x.dtype))

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
        }


def group_norm(name, policy, epsilon=EPSILON, **kwargs):
    """Returns a GroupNormalization as all these networks have it."""
    return keras.layers.GroupNormalization(
        GROUPS, epsilon=epsilon, dtype=policy, name=name, **kwargs
    )


@register
class Bottleneck(keras.layers.Layer):
    """A residual unit of three convolutions, each with GroupNorm, activated after the addition.

    Args:
        width: Channels inside; four times as many come out.
        strides: Of the 3x3 convolution, and of the projection where one is needed.
    Input shape: `(b, h, w, c)`.
    Output shape: `(b, h / strides, w / strides, 4 * width)`, rounded up.
    Source: He et al. 2016, with the norms of https://github.com/google-research/vision_transformer.
    """

    def __init__(self, width, strides=1, **kwargs):
        super().__init__(**kwargs)
        self.width, self.strides = int(width), int(strides)

    def changes_shape(self, input_shape):
        """Whether the shortcut needs a projection."""
        return self.strides != 1 or input_shape[-1] != 4 * self.width

    def build(self, input_shape):
        """Makes the branch, and the projection where the shape changes."""
        policy, wide = self.dtype_policy, 4 * self.width
        inside = (*input_shape[:3], self.width)
        self.project = self.changes_shape(input_shape)

        def pair(number, shape, filters, side, strides=1, **kwargs):
            conv = StdConv2D(filters, side, strides, dtype=policy, name=f"conv{number}")
            norm = group_norm(f"norm{number}", policy, **kwargs)
            conv.build(shape)
            norm.build((*shape[:3], filters))
            return conv, norm

        self.conv1, self.norm1 = pair(1, input_shape, self.width, 1)
        self.conv2, self.norm2 = pair(2, inside, self.width, 3, self.strides)
        # At first a unit is the identity.
        self.conv3, self.norm3 = pair(3, inside, wide, 1, gamma_initializer="zeros")
        if self.project:
            self.conv_proj, self.norm_proj = pair("_proj", input_shape, wide, 1, self.strides)

    def compute_output_shape(self, input_shape):
        """`(b, h / strides, w / strides, 4 * width)`."""
        height, width = (None if s is None else -(-s // self.strides) for s in input_shape[1:3])
        return input_shape[0], height, width, 4 * self.width

    def call(self, x):
        """Runs the unit."""
        y = ops.relu(self.norm1(self.conv1(x)))
        y = ops.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.project:
            x = self.norm_proj(self.conv_proj(x))
        return ops.relu(x + y)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "width": self.width, "strides": self.strides}


@register
class HybridStem(keras.layers.Layer):
    """The ResNet whose feature map takes the image's place in a hybrid ViT.

    A 7x7 convolution of stride 2 and a max-pool of stride 2, then stages of bottleneck units, each
    stage after the first at half the resolution and twice the width.

    Args:
        num_units: Number of units in each stage, such as (3, 4, 9); may be empty.
        width: Channels of the root and inside the units of the first stage.
    Input shape: `(b, h, w, c)`, values in [-1, 1].
    Output shape: `(b, h / s, w / s, C)` with s = 2 ** (stages + 1) (4 without stages), and
        C = 4 * width * 2 ** (stages - 1) (width without stages).
    Source: Dosovitskiy et al. 2021, section 3.1 and appendix B.
    """

    def __init__(self, num_units, width=64, **kwargs):
        super().__init__(**kwargs)
        self.num_units, self.width = tuple(num_units), int(width)
        self.root = StdConv2D(self.width, 7, 2, dtype=self.dtype_policy, name="root")
        self.root_norm = group_norm("root_norm", self.dtype_policy)
        self.pool = keras.layers.MaxPooling2D(3, 2, padding="same", dtype=self.dtype_policy)
        self.units = [
            Bottleneck(
                self.width * 2**stage,
                strides=2 if stage and not unit else 1,
                dtype=self.dtype_policy,
                name=f"stage{stage + 1}_unit{unit + 1}",
            )
            for stage, count in enumerate(self.num_units)
            for unit in range(count)
        ]

    @property
    def stride(self):
        """Pixels of the image for one place of the feature map, in each direction."""
        return 2 ** (max(len(self.num_units), 1) + 1)

    def build(self, input_shape):
        """Makes root and units, one after the other."""
        shape = input_shape
        for layer in (self.root, self.root_norm, self.pool, *self.units):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def compute_output_shape(self, input_shape):
        """`(b, h / s, w / s, C)`."""
        shape = input_shape
        for layer in (self.root, self.pool, *self.units):
            shape = layer.compute_output_shape(shape)
        return shape

    def call(self, images):
        """Runs the ResNet."""
        x = self.pool(ops.relu(self.root_norm(self.root(images))))  # (b, h/4, w/4, width)
        for unit in self.units:
            x = unit(x)
        return x

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "num_units": self.num_units, "width": self.width}
