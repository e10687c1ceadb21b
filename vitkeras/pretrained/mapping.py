"""The architecture that a weight file describes, and the mapping of its arrays to weights."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from vitkeras.errors import InputError
from vitkeras.models.config import VARIANTS, ResNetConfig, ViTConfig

#: Mean and standard deviation of red, green and blue, for pixels in [0, 1]. The first pair maps
#: pixels to [-1, 1].
INCEPTION_MEAN_STD = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

PATCH_KERNEL = "patch_encoder/projection/kernel"
PATCH_BIAS = "patch_encoder/projection/bias"
POSITIONS = "patch_encoder/positions/embedding"


@dataclasses.dataclass(frozen=True)
class PretrainedSpec:
    """The model in a weight file, and the conventions of the code that the weights come from.

    Args:
        config: The architecture.
        position_resize: How that code resizes position embeddings, one of `resizing.RESIZES`.
        mean_std: Mean and standard deviation that it normalizes pixels in [0, 1] with.
        naming: What the format needs to know about the names in this file.
        warnings: Sentences about what had to be assumed.
    """

    config: ViTConfig | ResNetConfig
    position_resize: str = "zoom"
    mean_std: tuple[Sequence[float], Sequence[float]] = INCEPTION_MEAN_STD
    naming: tuple = ()
    warnings: tuple[str, ...] = ()

    @property
    def vit_config(self) -> ViTConfig:
        """`config` of a ViT."""
        assert isinstance(self.config, ViTConfig)
        return self.config


@dataclasses.dataclass(frozen=True)
class WeightMapping:
    """How one weight of a model is stored in a file.

    Each array is transposed by `axes` and reshaped to `shape`; several arrays are then concatenated
    along the last axis. `write` is the inverse.

    Args:
        path: Path of the weight in a model of this package.
        names: Names of the arrays that it is made of.
        file_shape: Shape of each of these arrays.
        shape: Shape that each array is reshaped to; None to keep it.
        axes: Permutation before the reshape; None for none.
        combine: Function of the arrays that returns the weight, in place of the steps above. Such a
            mapping cannot be written.
        file_shapes: Shapes of the arrays, where `combine` takes several shapes.
    """

    path: str
    names: tuple[str, ...]
    file_shape: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None
    axes: tuple[int, ...] | None = None
    combine: Callable[..., np.ndarray] | None = None
    file_shapes: tuple[tuple[int, ...], ...] | None = None

    @property
    def expected_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the arrays, one for each name."""
        return self.file_shapes or (self.file_shape,) * len(self.names)

    def _transposed_shape(self):
        axes = self.axes or range(len(self.file_shape))
        return tuple(self.file_shape[axis] for axis in axes)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        if self.combine is not None:
            return self.shape or ()
        shape = self.shape or self._transposed_shape()
        return (*shape[:-1], shape[-1] * len(self.names)) if shape else shape

    def read(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the weight, made from the arrays."""
        if self.combine is not None:
            return self.combine(*arrays)
        parts = []
        for array in arrays:
            array = np.reshape(array, self.file_shape)  # some files keep axes of length 1
            array = array if self.axes is None else np.transpose(array, self.axes)
            parts.append(array if self.shape is None else np.reshape(array, self.shape))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def write(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays by name, made from the weight."""
        arrays = {}
        parts = np.split(np.asarray(value), len(self.names), axis=-1)
        for name, part in zip(self.names, parts, strict=True):
            part = np.reshape(part, self._transposed_shape())
            if self.axes is not None:
                part = np.transpose(part, np.argsort(self.axes))
            arrays[name] = np.ascontiguousarray(part)
        return arrays


def torch_dense(path: str, name: str, inputs: int, outputs: int) -> list[WeightMapping]:
    """Returns the mappings of a dense layer that torch stores as (out, in)."""
    return [
        WeightMapping(f"{path}/kernel", (f"{name}.weight",), (outputs, inputs), axes=(1, 0)),
        WeightMapping(f"{path}/bias", (f"{name}.bias",), (outputs,)),
    ]


def torch_projection(name: str, config: ViTConfig) -> list[WeightMapping]:
    """Returns the mappings of a patch projection, in torch a convolution (d, c, p, p)."""
    p, c, d = config.patch_size, config.channels, config.hidden_dim
    shape, flat = (d, c, p, p), (p * p * c, d)
    return [
        WeightMapping(PATCH_KERNEL, (f"{name}.weight",), shape, flat, axes=(2, 3, 1, 0)),
        WeightMapping(PATCH_BIAS, (f"{name}.bias",), (d,)),
    ]


def torch_norm(path: str, name: str, width: int) -> list[WeightMapping]:
    """Returns the mappings of a norm that torch stores as weight and bias."""
    return norm(path, f"{name}.weight", f"{name}.bias", width)


def norm(path: str, scale: str, bias: str, width: int) -> list[WeightMapping]:
    """Returns the mappings of a LayerNorm or GroupNorm."""
    return [
        WeightMapping(f"{path}/gamma", (scale,), (width,)),
        WeightMapping(f"{path}/beta", (bias,), (width,)),
    ]


def infer_grid(
    positions: int,
    path,
    given: tuple[int, int] | None = None,
    fallback: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Returns the `(rows, columns)` of a number of patch positions.

    Args:
        positions: Number of position embeddings of patches.
        path: File name, for the message.
        given: Grid from the user, or from a file next to the weights.
        fallback: Grid that is used if `positions` is not a square number.
    Raises:
        InputError: If `given` has another number of cells, or the grid cannot be determined.
    """
    side = math.isqrt(positions)
    if given is not None:
        if len(given) != 2 or given[0] * given[1] != positions:
            raise InputError(
                "`grid=(rows, columns)` must have one cell per position embedding of the file. "
                f"Received: grid={tuple(given)}, {path} has {positions} positions."
            )
        return given[0], given[1]
    if side * side == positions:
        return side, side
    if fallback is not None and fallback[0] * fallback[1] == positions:
        return fallback
    raise InputError(
        "The grid of a file must be given as `grid=(rows, columns)` unless it is square. "
        f"Received: {path}, which has {positions} positions."
    )


def infer_num_heads(
    sizes: tuple[int, int, int], path, given: int | None = None, fallback: int | None = None
) -> tuple[int, tuple[str, ...]]:
    """Returns the number of heads, which the shapes in a torch file do not show, and warnings.

    Args:
        sizes: `(hidden_dim, mlp_dim, num_layers)`.
        path: File name, for the messages.
        given: Number from the user, or from a file next to the weights.
        fallback: Number that is used if no variant has these sizes.
    Returns:
        The number and, if it is a guess (one head per 64 channels), a warning.
    Raises:
        InputError: If the number cannot be determined or does not divide the width.
    """
    warnings: tuple[str, ...] = ()
    if given is None:
        known = (v for v in VARIANTS.values() if (v.hidden_dim, v.mlp_dim, v.num_layers) == sizes)
        given = next((v.num_heads for v in known), fallback)
    if given is None and sizes[0] % 64 == 0:
        given = sizes[0] // 64
        warnings = (
            f"The number of heads of {path} is a guess: {given}. Pass `num_heads` to set it.",
        )
    if not isinstance(given, int) or given < 1 or sizes[0] % given:
        raise InputError(
            "`num_heads` must be a divisor of the width; pass it, or put the file's config.json "
            f"next to it. Received: num_heads={given!r}, {path} has width {sizes[0]}."
        )
    return given, warnings


def count_names(shapes, pattern: str, first: int = 0) -> int:
    """Returns how many consecutive names `pattern.format(i)` exist, starting at i = first."""
    number = first
    while pattern.format(number) in shapes:
        number += 1
    return number - first


def require_shape(arrays, name: str, rank: int) -> tuple[int, ...]:
    """Returns the shape of an array.

    Raises:
        InputError: If it is missing, empty or has another number of axes.
    """
    shape = arrays.shapes.get(name)
    if shape is None or len(shape) != rank or 0 in shape:
        received = "is missing" if shape is None else f"has shape {shape}"
        raise InputError(
            f"A weight file must hold {name} with {rank} axes. "
            f"Received: {arrays.path}, where it {received}."
        )
    return shape


def square_patches(arrays, name: str) -> tuple[int, int]:
    """Returns the width and the patch size of a torch projection (d, 3, p, p).

    Raises:
        InputError: If its patches are not square, or do not have three channels.
    """
    d, channels, height, width = require_shape(arrays, name, 4)
    if height != width or channels != 3:
        raise InputError(
            "Patches must be square and have three channels. "
            f"Received: {arrays.path}, where {name} has shape {(d, channels, height, width)}."
        )
    return d, height
