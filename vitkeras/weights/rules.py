"""What a format is made of: facts about the model in a file, and rules from arrays to weights.

A format is a room with `NAME`, `matches(shapes)`, `facts(arrays, config, hint)` and
`rules(facts)`; those that can be written have `check_writable(facts)` too.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from vitkeras.errors import InputError
from vitkeras.models import HYBRIDS, VARIANTS, Sizes, vit

#: Mean and deviation of each colour that bring values in [0, 1] to [-1, 1], and ImageNet's.
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one weight of a model lies in a file.

    Each array is transposed by `axes` and reshaped to `shape`; then all are joined along the last
    axis. `write` is the way back.

    Args:
        path: The weight's path in a model of this package.
        names: The arrays of the file that it is made of.
        file_shape: Shape of each of them.
        shape: Shape that each of them is given; None to leave it.
        axes: Their order before that; None to leave it.
        combine: Instead of all that, makes the weight of the arrays; such a rule cannot be written.
        file_shapes: Where `combine` takes arrays of several shapes, these.
    """

    path: str
    names: tuple[str, ...]
    file_shape: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None
    axes: tuple[int, ...] | None = None
    combine: Callable | None = None
    file_shapes: tuple[tuple[int, ...], ...] | None = None

    @property
    def expected(self):
        """Shapes of the arrays, one for each name."""
        return self.file_shapes or (self.file_shape,) * len(self.names)

    def _moved(self):
        axes = self.axes or range(len(self.file_shape))
        return tuple(self.file_shape[axis] for axis in axes)

    @property
    def weight_shape(self):
        """Shape of the weight."""
        if self.combine is not None:
            return self.shape
        shape = self.shape or self._moved()
        return (*shape[:-1], shape[-1] * len(self.names)) if shape else shape

    def read(self, arrays):
        """Makes the weight from the arrays."""
        if self.combine is not None:
            return self.combine(*arrays)
        parts = []
        for array in arrays:
            array = np.reshape(array, self.file_shape)  # some files keep axes of length 1
            array = array if self.axes is None else np.transpose(array, self.axes)
            parts.append(array if self.shape is None else np.reshape(array, self.shape))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def write(self, value):
        """Makes the arrays from the weight: a dict by name."""
        arrays = {}
        for name, part in zip(
            self.names, np.split(np.asarray(value), len(self.names), axis=-1), strict=True
        ):
            part = np.reshape(part, self._moved())
            if self.axes is not None:
                part = np.transpose(part, np.argsort(self.axes))
            arrays[name] = np.ascontiguousarray(part)
        return arrays


def linear(path, name, inputs, outputs):
    """Returns the rules of a dense layer as torch keeps it, (out, in)."""
    return [
        Rule(f"{path}/kernel", (f"{name}.weight",), (outputs, inputs), axes=(1, 0)),
        Rule(f"{path}/bias", (f"{name}.bias",), (outputs,)),
    ]


def torch_projection(name, patch_size, width):
    """Returns the rules of the patch projection as torch keeps it, a convolution (d, 3, p, p)."""
    p, d = patch_size, width
    path = "patch_encoder/projection"
    return [
        Rule(
            f"{path}/kernel", (f"{name}.weight",), (d, 3, p, p), (p * p * 3, d), axes=(2, 3, 1, 0)
        ),
        Rule(f"{path}/bias", (f"{name}.bias",), (d,)),
    ]


def norm(path, scale, bias, width):
    """Returns the rules of a LayerNorm or GroupNorm."""
    return [
        Rule(f"{path}/gamma", (scale,), (width,)),
        Rule(f"{path}/beta", (bias,), (width,)),
    ]


@dataclasses.dataclass(frozen=True)
class VitFacts:
    """What a file or a model tells of a ViT: sizes, kind, and the numerics of its origin.

    Args:
        hidden_dim, mlp_dim, num_heads, num_layers, patch_size: As in `vit`.
        grid: `(rows, columns)` of the position embeddings.
        num_units: Units in each stage of a hybrid's stem; None for no stem.
        classifier, positions, positions_at, num_registers, pre_logits, gelu, epsilon: As in `vit`.
        layer_scale: Whether there is one.
        num_classes: Width of the head; None for no head.
        resize: How positions are resized where these weights come from.
        mean_std: Mean and deviation of each colour, of values in [0, 1], that images are normalised
            with where these weights come from.
        style: What a format needs to remember of its own names.
        notes: What had to be assumed, to warn of.
    """

    hidden_dim: int
    mlp_dim: int
    num_heads: int
    num_layers: int
    patch_size: int
    grid: tuple[int, int]
    num_units: tuple[int, ...] | None = None
    classifier: str = "token"
    positions: str = "learned"
    positions_at: str = "input"
    num_registers: int = 0
    pre_logits: bool = False
    layer_scale: bool = False
    num_classes: int | None = None
    gelu: str = "tanh"
    epsilon: float = 1e-6
    resize: str = "zoom"
    mean_std: tuple = HALF
    style: tuple = ()
    notes: tuple = ()

    @property
    def class_token(self):
        """Whether there is one."""
        return "token" in self.classifier

    @property
    def stride(self):
        """Pixels between two patches."""
        stem = 1 if self.num_units is None else 2 ** (max(len(self.num_units), 1) + 1)
        return self.patch_size * stem

    @property
    def channels(self):
        """Channels that are projected: of the image, or of the stem's map."""
        if self.num_units is None:
            return 3
        return 64 * 2 ** (len(self.num_units) + 1) if self.num_units else 64

    def variant(self):
        """Returns the name that `vit` takes; for sizes of no letter, with any letter."""
        sizes = (self.hidden_dim, self.mlp_dim, self.num_heads, self.num_layers)
        letter = next((k for k, v in VARIANTS.items() if tuple(v) == sizes), "B")
        if self.num_units is None:
            return f"{letter}/{self.patch_size}"
        same = [
            name
            for name, (_, units, patch_size) in HYBRIDS.items()
            if units == self.num_units and patch_size == self.patch_size
        ]
        if not same:
            raise InputError(
                f"A hybrid must be one of {', '.join(HYBRIDS)}. Received: a file with units "
                f"{self.num_units} and patches of {self.patch_size}."
            )
        return next((name for name in same if HYBRIDS[name][0] == letter), same[0])

    def build(self, num_classes=None, image_size=None, **options):
        """Returns a fresh model; by default as it was: its head and its grid."""
        classes = self.num_classes if num_classes is None else num_classes
        native = tuple(places * self.stride for places in self.grid)
        facts = {
            **{field: getattr(self, field) for field in Sizes._fields},
            "classifier": self.classifier,
            "positions": self.positions,
            "positions_at": self.positions_at,
            "num_registers": self.num_registers,
            # It belongs to the pretraining, as the head does: a new task takes it off.
            "pre_logits": self.pre_logits and num_classes is None,
            "layer_scale": 1.0 if self.layer_scale else None,
            "gelu": self.gelu,
            "epsilon": self.epsilon,
            "include_top": classes is not None,
        }
        options.setdefault("name", f"vit_{self.hidden_dim}_{self.patch_size}")
        return vit(
            self.variant(),
            image_size=native if image_size is None else image_size,
            num_classes=classes or 0,
            **{**facts, **options},
        )


def is_vit(model):
    """Whether a model was made by `vit`."""
    return any(layer.name == "patch_encoder" for layer in model.layers)


def encoder_facts(model):
    """Returns the `VitFacts` of a model made by `vit`."""
    names = {layer.name for layer in model.layers}
    encoder, block = model.get_layer("patch_encoder"), model.get_layer("block_00")
    positions, positions_at = encoder.positions.positions, "input"
    for name, at in (("positions", "every_block_shared"), ("positions_00", "every_block")):
        if name in names:
            positions, positions_at = model.get_layer(name).positions, at
    if "map_head" in names:
        classifier = "map"
    elif "token_and_pool" in names:
        classifier = "token_gap"
    elif "pool" in names:
        classifier = "gap" if len(model.get_layer("norm").output.shape) == 3 else "gap_norm"
    else:
        classifier = "token"
    return VitFacts(
        hidden_dim=encoder.hidden_dim,
        mlp_dim=block.mlp_dim,
        num_heads=block.num_heads,
        num_layers=sum(name.startswith("block_") for name in names),
        patch_size=model.get_layer("patches").patch_size,
        grid=encoder.grid,
        num_units=model.get_layer("stem").num_units if "stem" in names else None,
        classifier=classifier,
        positions="relative" if block.relative_positions else positions,
        positions_at=positions_at,
        num_registers=encoder.num_registers,
        pre_logits="pre_logits" in names,
        layer_scale=block.layer_scale is not None,
        num_classes=model.get_layer("head").units if "head" in names else None,
        gelu=block.gelu,
        epsilon=block.epsilon,
    )


def grid_of(places, path, given=None, otherwise=None):
    """Returns `(rows, columns)` of a number of places.

    Args:
        places: Number of position embeddings of patches.
        path: For the message.
        given: What is said by the user or beside the file.
        otherwise: A grid that is possible, taken only where a square is not.
    Raises:
        InputError: If `given` has another number of places, or there is no telling.
    """
    side = math.isqrt(places)
    if given is not None:
        if len(given) != 2 or given[0] * given[1] != places:
            raise InputError(
                "`grid=(rows, columns)` must have as many places as the file has positions. "
                f"Received: grid={tuple(given)}, {path} has {places}."
            )
        return tuple(given)
    if side * side == places:
        return side, side
    if otherwise is not None and otherwise[0] * otherwise[1] == places:
        return tuple(otherwise)
    raise InputError(
        "Positions that are not those of a square do not tell their grid: give "
        f"`grid=(rows, columns)`. Received: {path}, with {places} places."
    )


def heads(sizes, path, given=None, otherwise=None):
    """Returns the number of heads, which the shapes of a torch file do not tell, and a note.

    Args:
        sizes: hidden_dim, mlp_dim and num_layers.
        path: For the message.
        given: What is said by the user or beside the file.
        otherwise: What to take where neither that nor a letter with these sizes tells.
    Returns:
        The number, and what to warn of: a guess of one head for each 64 of the width.
    Raises:
        InputError: If there is no telling, or the number does not divide the width.
    """
    notes = ()
    if given is None:
        letters = (v for v in VARIANTS.values() if (v.hidden_dim, v.mlp_dim, v.num_layers) == sizes)
        given = next((v.num_heads for v in letters), otherwise)
    if given is None and sizes[0] % 64 == 0:
        given = sizes[0] // 64
        notes = (f"The number of heads of {path} was guessed, {given}: give `num_heads`.",)
    if not isinstance(given, int) or given < 1 or sizes[0] % given:
        raise InputError(
            "The file does not tell its number of heads: give `num_heads`, a divisor of the width, "
            f"or put its config.json beside it. Received: {path}, of width {sizes[0]}, "
            f"num_heads={given!r}."
        )
    return given, notes


def count(shapes, pattern, first=0):
    """Returns how many names `pattern.format(i)` there are, from i = first on."""
    number = first
    while pattern.format(number) in shapes:
        number += 1
    return number - first


def shape_of(arrays, name, rank):
    """Returns the shape of an array that must be there with so many axes.

    Raises:
        InputError: If it is not.
    """
    shape = arrays.shapes.get(name)
    if shape is None or len(shape) != rank or 0 in shape:
        raise InputError(
            f"A weight file must hold {name} with {rank} axes. "
            f"Received: {arrays.path}, where it is "
            + ("missing." if shape is None else f"{shape}.")
        )
    return shape


def square_patches(arrays, name):
    """Returns the width and the patch size of a torch projection, (d, 3, p, p).

    Raises:
        InputError: If its patches are not square, or of other channels.
    """
    d, channels, height, width = shape_of(arrays, name, 4)
    if height != width or channels != 3:
        raise InputError(
            "Patches must be square and of three channels. "
            f"Received: {arrays.path}, {name}: {(d, channels, height, width)}."
        )
    return d, height
