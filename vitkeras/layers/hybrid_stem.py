"""The ResNet stem of a hybrid ViT, and a convolution that the BiT ResNets also use."""

from collections.abc import Sequence

import keras
from keras import ops

from vitkeras.arguments import check_int
from vitkeras.layers.regularization import register

GROUPS = 32
EPSILON = 1e-6
#: Axes of a kernel `(height, width, in, out)` that are standardized together.
KERNEL_AXES = (0, 1, 2)


def stem_stride(num_units: tuple[int, ...] | None) -> int:
    """Returns the stride of a stem with these units in its stages; 1 for no stem (None)."""
    return 1 if num_units is None else 2 ** (max(len(num_units), 1) + 1)


def stem_channels(num_units: tuple[int, ...], width: int = 64) -> int:
    """Returns the number of output channels of a stem with these units in its stages."""
    return width * 2 ** (len(num_units) + 1) if num_units else width


@register
class StdConv2D(keras.layers.Layer):
    """A convolution without bias whose kernel is standardized to mean 0 and variance 1 per filter.

    The kernel is standardized in float32, also under mixed precision. Padding is "same". These are
    the conventions of the hybrids; `BiTConv2D` overrides `kernel_std` and `convolve`.

    Args:
        filters: Number of output channels.
        kernel_size: Side of the kernel, in pixels.
        strides: Stride in both directions.
    Input shape: `(b, h, w, c)`.
    Output shape: `(b, ceil(h / strides), ceil(w / strides), filters)`.
    Source: Qiao et al. 2019, "Micro-Batch Training with Batch-Channel Normalization and Weight
        Standardization"; https://github.com/google-research/vision_transformer.
    """

    def __init__(self, filters: int, kernel_size: int, strides: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.filters = check_int("filters", filters)
        self.kernel_size = check_int("kernel_size", kernel_size)
        self.strides = check_int("strides", strides)

    def build(self, input_shape):
        self.kernel = self.add_weight(
            shape=(self.kernel_size, self.kernel_size, input_shape[-1], self.filters),
            initializer="lecun_normal",
            name="kernel",
            autocast=False,  # it is standardized in float32
        )

    def compute_output_shape(self, input_shape):
        height, width = (None if s is None else -(-s // self.strides) for s in input_shape[1:3])
        return input_shape[0], height, width, self.filters

    def kernel_std(self, kernel):
        """Returns the standard deviation of each filter, `(1, 1, 1, filters)`; never 0."""
        return ops.std(kernel, axis=KERNEL_AXES, keepdims=True) + 1e-5

    def convolve(self, x, kernel, padding="same"):
        """Convolves with a standardized kernel."""
        return ops.conv(x, kernel, self.strides, padding, data_format="channels_last")

    def standardized_kernel(self):
        """Returns the kernel with mean 0 and variance 1 per filter, float32."""
        kernel = ops.convert_to_tensor(self.kernel)
        mean = ops.mean(kernel, axis=KERNEL_AXES, keepdims=True)
        return (kernel - mean) / self.kernel_std(kernel)

    def call(self, x):
        return self.convolve(x, ops.cast(self.standardized_kernel(), x.dtype))

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
        }


def group_norm(
    name: str, policy: keras.DTypePolicy, epsilon: float = EPSILON, **kwargs
) -> keras.layers.GroupNormalization:
    """Returns a GroupNormalization with the groups of all these networks."""
    return keras.layers.GroupNormalization(
        GROUPS, epsilon=epsilon, dtype=policy, name=name, **kwargs
    )


@register
class Bottleneck(keras.layers.Layer):
    """A post-activation bottleneck: three convolutions with GroupNorm and a residual connection.

    Args:
        width: Inner channels; the output has four times as many.
        strides: Stride of the 3x3 convolution and of the projection.
    Input shape: `(b, h, w, c)`.
    Output shape: `(b, ceil(h / strides), ceil(w / strides), 4 * width)`.
    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", with the norms of
        https://github.com/google-research/vision_transformer.
    """

    def __init__(self, width: int, strides: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.width, self.strides = check_int("width", width), check_int("strides", strides)

    def changes_shape(self, input_shape):
        """Returns whether the shortcut needs a projection."""
        return self.strides != 1 or input_shape[-1] != 4 * self.width

    def build(self, input_shape):
        policy, out_channels = self.dtype_policy, 4 * self.width
        inner_shape = (*input_shape[:3], self.width)
        self.project = self.changes_shape(input_shape)

        def conv_and_norm(suffix, shape, filters, kernel_size, strides=1, **kwargs):
            conv = StdConv2D(filters, kernel_size, strides, dtype=policy, name=f"conv{suffix}")
            norm = group_norm(f"norm{suffix}", policy, **kwargs)
            conv.build(shape)
            norm.build((*shape[:3], filters))
            return conv, norm

        self.conv1, self.norm1 = conv_and_norm(1, input_shape, self.width, 1)
        self.conv2, self.norm2 = conv_and_norm(2, inner_shape, self.width, 3, self.strides)
        # Zero gamma: a new unit is the identity.
        self.conv3, self.norm3 = conv_and_norm(
            3, inner_shape, out_channels, 1, gamma_initializer="zeros"
        )
        if self.project:
            self.conv_proj, self.norm_proj = conv_and_norm(
                "_proj", input_shape, out_channels, 1, self.strides
            )

    def compute_output_shape(self, input_shape):
        height, width = (None if s is None else -(-s // self.strides) for s in input_shape[1:3])
        return input_shape[0], height, width, 4 * self.width

    def call(self, x):
        y = ops.relu(self.norm1(self.conv1(x)))
        y = ops.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.project:
            x = self.norm_proj(self.conv_proj(x))
        return ops.relu(x + y)

    def get_config(self):
        return {**super().get_config(), "width": self.width, "strides": self.strides}


@register
class HybridStem(keras.layers.Layer):
    """The ResNet whose feature map replaces the image in a hybrid ViT.

    A 7x7 convolution of stride 2 and a max-pool of stride 2, followed by stages of bottlenecks;
    each stage after the first has half the resolution and twice the width.

    Args:
        num_units: Number of units in each stage, such as (3, 4, 9); may be empty.
        width: Channels of the root, and inner channels of the first stage.
    Input shape: `(b, h, w, c)`, values in [-1, 1].
    Output shape: `(b, h / s, w / s, stem_channels)` with `s = stem_stride(num_units)`.
    Source: Dosovitskiy et al. 2021, section 3.1 and appendix B.
    """

    def __init__(self, num_units: Sequence[int], width: int = 64, **kwargs):
        super().__init__(**kwargs)
        self.num_units, self.width = tuple(num_units), check_int("width", width)
        self.root = StdConv2D(self.width, 7, 2, dtype=self.dtype_policy, name="root")
        self.root_norm = group_norm("root_norm", self.dtype_policy)
        self.pool = keras.layers.MaxPooling2D(
            3, 2, padding="same", data_format="channels_last", dtype=self.dtype_policy
        )
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
        """Pixels of the image per cell of the feature map, in each direction."""
        return stem_stride(self.num_units)

    def build(self, input_shape):
        shape = input_shape
        for layer in (self.root, self.root_norm, self.pool, *self.units):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def compute_output_shape(self, input_shape):
        shape = input_shape
        for layer in (self.root, self.pool, *self.units):
            shape = layer.compute_output_shape(shape)
        return shape

    def call(self, images):
        x = self.pool(ops.relu(self.root_norm(self.root(images))))  # (b, h/4, w/4, width)
        for unit in self.units:
            x = unit(x)
        return x

    def get_config(self):
        return {**super().get_config(), "num_units": self.num_units, "width": self.width}
