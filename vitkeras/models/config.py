"""Configs that describe a model completely, validated.

A config is kept on its model as `model.config` and saved with it, so that loading, transfer,
interpretation and export read the architecture instead of guessing it from layers.
"""

import dataclasses
import re
from typing import Any, NamedTuple

import keras

from vitkeras.arguments import (
    check_choice,
    check_float,
    check_int,
    check_range,
    did_you_mean,
    parse_image_size,
)
from vitkeras.errors import InputError
from vitkeras.layers.embeddings import POSITIONS as TOKEN_POSITIONS
from vitkeras.layers.hybrid_stem import stem_channels, stem_stride
from vitkeras.layers.transformer import GELUS

CLASSIFIERS = ("token", "gap", "gap_norm", "map", "token_gap")
POSITIONS = (*TOKEN_POSITIONS, "relative")
POSITIONS_AT = ("input", "every_block", "every_block_shared")


class Sizes(NamedTuple):
    """The sizes that the letter of a variant means."""

    hidden_dim: int
    mlp_dim: int
    num_heads: int
    num_layers: int


#: Sources: Dosovitskiy et al. 2021, table 1 (B, L, H); Steiner et al. 2021 (Ti, S);
#: Zhai et al. 2022, "Scaling Vision Transformers" (g, G).
VARIANTS = {
    "Ti": Sizes(192, 768, 3, 12),
    "S": Sizes(384, 1536, 6, 12),
    "B": Sizes(768, 3072, 12, 12),
    "L": Sizes(1024, 4096, 16, 24),
    "H": Sizes(1280, 5120, 16, 32),
    "g": Sizes(1408, 6144, 16, 40),
    "G": Sizes(1664, 8192, 16, 48),
}

#: By name of a hybrid: its letter, the units in each stage of its ResNet stem, and the patch size
#: on the stem's feature map. The number in the name is the stride of the model, except that
#: R+Ti/16 has stride 32. Sources: Dosovitskiy et al. 2021, table 3 (R50); Steiner et al. 2021
#: (R, R26).
HYBRIDS = {
    "R+Ti/16": ("Ti", (), 8),
    "R26+S/32": ("S", (2, 2, 2, 2), 1),
    "R26+B/32": ("B", (2, 2, 2, 2), 1),
    "R50+B/16": ("B", (3, 4, 9), 1),
    "R50+B/32": ("B", (3, 4, 6, 3), 1),
    "R50+L/16": ("L", (3, 4, 9), 1),
    "R50+L/32": ("L", (3, 4, 6, 3), 1),
}

_UNITS = {"R50": (3, 4, 6, 3), "R101": (3, 4, 23, 3), "R152": (3, 8, 36, 3)}

#: By name of a BiT ResNet: the units in each stage, and the width factor.
#: Source: Dosovitskiy et al. 2021, table 6.
RESNETS = {
    "R50x1": (_UNITS["R50"], 1),
    "R50x2": (_UNITS["R50"], 2),
    "R101x1": (_UNITS["R101"], 1),
    "R152x1": (_UNITS["R152"], 1),
    "R152x2": (_UNITS["R152"], 2),
}


@dataclasses.dataclass(frozen=True)
class _Config:
    """Base class of model configs, which are frozen dataclasses."""

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a JSON-serializable dict."""
        values = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]):
        """Restores a config from `to_dict`.

        Raises:
            InputError: If a field is unknown, missing or out of range.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise InputError(
                f"A {cls.__name__} must have the fields {', '.join(sorted(names))}. "
                f"Received: {', '.join(unknown)}."
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"A {cls.__name__} is incomplete: {error}.") from error


@dataclasses.dataclass(frozen=True)
class ViTConfig(_Config):
    """Architecture of a Vision Transformer.

    Args:
        patch_size: Side of a patch in pixels; of a hybrid, in cells of the stem's feature map.
        hidden_dim: Width d of the tokens; divisible by `num_heads`.
        mlp_dim: Width f of the MLPs.
        num_heads: Number of attention heads k.
        num_layers: Number of blocks.
        image_size: Side in pixels, or `(height, width)`; divisible by `stride`.
        channels: Channels of the image.
        stem_units: Units in each stage of a hybrid's ResNet stem; None for no stem.
        num_classes: Number of logits; None for a model without a head, which returns features.
        classifier: What represents the image: "token", the class token; "gap", the mean of the
            patch tokens; "gap_norm", the same with the last norm after the mean (timm); "map",
            attention pooling; "token_gap", class token and mean concatenated (DINOv2). Only
            "token" and "token_gap" have a class token.
        positions: "learned" (the paper), "learned_2d", "sincos_2d", "none", or "relative": learned
            vectors in each block's attention.
        positions_at: Where absolute positions are added: "input"; "every_block", with weights of
            their own before each block; "every_block_shared".
        num_registers: Number of register tokens between class token and patches.
        pre_logits: Whether a tanh layer precedes the head, as in pretraining on ImageNet-21k.
        dropout_rate: Dropout after the positions and after every dense layer except qkv.
        stochastic_depth_rate: Rate of the last block; it grows linearly from 0 in the first.
        remat: Whether the backward pass recomputes each block, to save memory.
        layer_scale: Initial value of LayerScale; None for no LayerScale.
        gelu: "tanh" (the approximation that the authors train with) or "exact".
        epsilon: Added to the variance in every LayerNorm.
        include_rescaling: Whether the model rescales pixels from [0, 255] to [-1, 1] itself.
    Raises:
        InputError: (a ValueError) If a value is out of range or does not fit another one.
    """

    patch_size: int
    hidden_dim: int
    mlp_dim: int
    num_heads: int
    num_layers: int
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    stem_units: tuple[int, ...] | None = None
    num_classes: int | None = 1000
    classifier: str = "token"
    positions: str = "learned"
    positions_at: str = "input"
    num_registers: int = 0
    pre_logits: bool = False
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    remat: bool = False
    layer_scale: float | None = None
    gelu: str = "tanh"
    epsilon: float = 1e-6
    include_rescaling: bool = True

    def __post_init__(self):
        for name in (
            "patch_size", "hidden_dim", "mlp_dim", "num_heads", "num_layers", "channels"
        ):  # fmt: skip
            self._set(**{name: check_int(name, getattr(self, name))})
        self._set(num_registers=check_int("num_registers", self.num_registers, 0))
        if self.num_classes is not None:
            self._set(num_classes=check_int("num_classes", self.num_classes))
        if self.stem_units is not None:
            self._set(stem_units=tuple(check_int("stem_units", n) for n in self.stem_units))
        self._set(image_size=parse_image_size(self.image_size, self.stride))
        check_choice("classifier", self.classifier, CLASSIFIERS)
        check_choice("positions", self.positions, POSITIONS)
        check_choice("positions_at", self.positions_at, POSITIONS_AT)
        check_choice("gelu", self.gelu, GELUS)
        for name in ("dropout_rate", "stochastic_depth_rate"):
            self._set(**{name: check_float(name, getattr(self, name), 0, 1, "in [0, 1)")})
        self._set(epsilon=check_float("epsilon", self.epsilon, 0, 1, "in [0, 1)"))
        if self.layer_scale is not None:
            rule = "a number of at least 0, or None"
            value = check_float("layer_scale", self.layer_scale, 0, float("inf"), rule)
            self._set(layer_scale=value)
        for name in ("pre_logits", "remat", "include_rescaling"):
            check_range(name, getattr(self, name), getattr(self, name) in (True, False), "a bool")
            self._set(**{name: bool(getattr(self, name))})
        if self.positions_at != "input" and self.positions not in TOKEN_POSITIONS[:-1]:
            raise InputError(
                "`positions_at` must be input unless `positions` is one of "
                f"{', '.join(TOKEN_POSITIONS[:-1])}. Received: positions_at={self.positions_at!r}, "
                f"positions={self.positions!r}."
            )
        if self.hidden_dim % self.num_heads:
            raise InputError(
                "`hidden_dim` must be divisible by `num_heads`. "
                f"Received: hidden_dim={self.hidden_dim}, num_heads={self.num_heads}."
            )
        if self.positions == "sincos_2d" and (self.hidden_dim % 4 or self.hidden_dim < 8):
            raise InputError(
                "`hidden_dim` must be a multiple of 4 and at least 8 for `positions=sincos_2d`. "
                f"Received: hidden_dim={self.hidden_dim}."
            )

    @classmethod
    def from_variant(cls, variant: str, **fields: Any) -> "ViTConfig":
        """Returns the config of a name such as "B/16" or "R50+B/16".

        Args:
            variant: A letter of `VARIANTS`, a slash and any patch size; or a name of `HYBRIDS`.
            **fields: Further fields. Of the four sizes, None means that of the letter.
        Raises:
            InputError: If the name is unknown or a field is out of range.
        """
        letter, patch_size, stem_units = parse_variant(variant)
        sizes = VARIANTS[letter]._asdict()
        sizes |= {k: fields.pop(k) for k in sizes if k in fields and fields[k] is not None}
        fields = {name: value for name, value in fields.items() if name not in sizes}
        return cls(patch_size=patch_size, stem_units=stem_units, **sizes, **fields)

    @property
    def stride(self) -> int:
        """Pixels between two patches, in both directions."""
        return self.patch_size * stem_stride(self.stem_units)

    @property
    def grid(self) -> tuple[int, int]:
        """`(rows, columns)` of the patches."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride

    @property
    def class_token(self) -> bool:
        """Whether there is a class token."""
        return "token" in self.classifier

    @property
    def projected_channels(self) -> int:
        """Channels that the patch projection sees: of the image, or of the stem's feature map."""
        return self.channels if self.stem_units is None else stem_channels(self.stem_units)

    @property
    def sizes(self) -> Sizes:
        """The sizes that a letter means."""
        return Sizes(self.hidden_dim, self.mlp_dim, self.num_heads, self.num_layers)

    @property
    def variant(self) -> str | None:
        """The name that `from_variant` takes, or None if no name has these sizes."""
        letter = next((k for k, sizes in VARIANTS.items() if sizes == self.sizes), None)
        if self.stem_units is None:
            return letter and f"{letter}/{self.patch_size}"
        described = (letter, self.stem_units, self.patch_size)
        return next((name for name, known in HYBRIDS.items() if known == described), None)


def parse_variant(variant: str) -> tuple[str, int, tuple[int, ...] | None]:
    """Returns the letter, the patch size and the stem's units (None for no stem) of a name.

    Raises:
        InputError: If the name is neither LETTER/PATCH nor that of a hybrid.
    """
    if variant in HYBRIDS:
        letter, stem_units, patch_size = HYBRIDS[variant]
        return letter, patch_size, stem_units
    match = re.fullmatch(r"(\w+)/([1-9]\d*)", str(variant))
    if not match or match[1] not in VARIANTS:
        examples = [f"{letter}/{patch}" for letter in VARIANTS for patch in (8, 14, 16, 32)]
        raise InputError(
            f"`variant` must be one of {', '.join(VARIANTS)}, a slash and a patch size, such as "
            f"B/16, or one of {', '.join(HYBRIDS)}. "
            f"Received: variant={variant!r}.{did_you_mean(variant, [*examples, *HYBRIDS])}"
        )
    return match[1], int(match[2]), None


@dataclasses.dataclass(frozen=True)
class ResNetConfig(_Config):
    """Architecture of a BiT ResNet.

    Args:
        num_units: Units in each of the stages.
        width_factor: Width relative to He et al.'s ResNets.
        image_size: Side in pixels, or `(height, width)`; any.
        channels: Channels of the image.
        num_classes: Number of logits; None for a model without a head, which returns features.
        include_rescaling: Whether the model rescales pixels from [0, 255] to [-1, 1] itself.
    Raises:
        InputError: (a ValueError) If a value is out of range.
    """

    num_units: tuple[int, ...]
    width_factor: int = 1
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    num_classes: int | None = 1000
    include_rescaling: bool = True

    def __post_init__(self):
        self._set(num_units=tuple(check_int("num_units", n) for n in self.num_units))
        for name in ("width_factor", "channels"):
            self._set(**{name: check_int(name, getattr(self, name))})
        if self.num_classes is not None:
            self._set(num_classes=check_int("num_classes", self.num_classes))
        self._set(image_size=parse_image_size(self.image_size))

    @classmethod
    def from_variant(cls, variant: str, **fields: Any) -> "ResNetConfig":
        """Returns the config of a name of `RESNETS`.

        Raises:
            InputError: If the name is unknown or a field is out of range.
        """
        check_choice("variant", variant, RESNETS)
        num_units, width_factor = RESNETS[variant]
        return cls(num_units, width_factor, **fields)

    @property
    def variant(self) -> str | None:
        """The name that `from_variant` takes, or None if none has these sizes."""
        described = (self.num_units, self.width_factor)
        return next((name for name, known in RESNETS.items() if known == described), None)


def config_to_dict(config: ViTConfig | ResNetConfig) -> dict[str, Any]:
    """Returns a config of either kind as a JSON-serializable dict, with its kind."""
    return {"type": type(config).__name__, **config.to_dict()}


def config_from_dict(values: dict[str, Any]) -> ViTConfig | ResNetConfig:
    """Restores a config from `config_to_dict`."""
    kinds = {kind.__name__: kind for kind in (ViTConfig, ResNetConfig)}
    values = dict(values)
    name = values.pop("type", None)
    check_choice("type", name, kinds)
    return kinds[name].from_dict(values)


def model_config(model: Any, argument: str = "model") -> ViTConfig | ResNetConfig:
    """Returns the config of a model.

    Args:
        model: A model made by `vit`, `resnet` or `from_pretrained`.
        argument: Name of the argument, for the message.
    Raises:
        InputError: If the model has none: it was not made by this package, or from layers of
            another model.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, keras.Model) or not isinstance(config, (ViTConfig, ResNetConfig)):
        raise InputError(
            f"`{argument}` must be made by `vit`, `resnet` or `from_pretrained`. "
            f"Received: {describe_model(model)}"
        )
    return config


def check_model(model: Any, argument: str = "model") -> None:
    """Checks that an argument is a Keras model.

    Raises:
        InputError: If it is not.
    """
    if not isinstance(model, keras.Model):
        raise InputError(f"`{argument}` must be a Keras model. Received: {describe_model(model)}")


def describe_model(model: Any) -> str:
    """Returns what was passed as a model in a sentence, with the model of this package in it."""
    kind = type(model).__name__
    if not isinstance(model, keras.Layer):
        return f"{model!r:.80}, of type {kind}."
    inner = next(
        (
            layer.name
            for layer in getattr(model, "layers", ())
            if isinstance(getattr(layer, "config", None), _Config)
        ),
        None,
    )
    if inner is None:
        return f"{model.name}, a {kind}."
    return f"{model.name}, a {kind} around {inner}. Pass `model.get_layer({inner!r})` instead."
