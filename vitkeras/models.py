"""`vit(...)`: one functional builder for every Vision Transformer of the paper.

Layer names are a contract: stem, patches, patch_encoder, block_00 ..., norm, pre_logits, head.
(And, where there are such: positions, positions_00 ..., pool, map_head, features.)
"""

import re
from typing import NamedTuple

import keras

from vitkeras.errors import InputError, nearest
from vitkeras.heads import MapHead
from vitkeras.layers import GELUS, LayerNormalization, TransformerBlock
from vitkeras.private import decays
from vitkeras.stem import HybridStem
from vitkeras.tokens import POSITIONS as PLACES
from vitkeras.tokens import PatchEncoder, Patches, PositionEmbedding

if keras.backend.backend() == "tensorflow":
    from vitkeras.exact import ExactModel as Base
else:  # a TensorFlow step cannot run elsewhere
    Base = keras.Model

CLASSIFIERS = ("token", "gap", "gap_norm", "map", "token_gap")
POSITIONS = (*PLACES, "relative")
POSITIONS_AT = ("input", "every_block", "every_block_shared")


@keras.saving.register_keras_serializable(package="vitkeras")
class VisionModel(Base):
    """A functional Keras model that trains and evaluates alike on any number of replicas.

    On the TensorFlow backend that is `ExactModel`'s work; elsewhere it trains as Keras does. What
    Keras forgets on reload, the weights that do not decay and the frozen ones, is kept on every
    backend.

    Images of type uint8 are pixels, 0 to 255, which it scales to [-1, 1] itself, on its device;
    floats have to be in [-1, 1] already.
    """

    def call(self, inputs, training=None, mask=None):
        """Scales pixels, then runs the layers."""
        if keras.backend.standardize_dtype(inputs.dtype) == "uint8":
            inputs = (keras.ops.cast(inputs, "float32") - 127.5) / 127.5
        return super().call(inputs, training=training, mask=mask)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """As Keras's; and a layer that is frozen tells its weights, in a clone and on load."""
        model = super().from_config(config, custom_objects)
        for layer in model.layers:
            if not layer.trainable:  # set before there were weights
                layer.trainable = True  # else TensorFlow would take the next line for done
                layer.trainable = False
        return model

    def get_compile_config(self):
        """Adds the paths of the weights that the optimizer does not decay."""
        config = super().get_compile_config()
        if config and self.optimizer is not None and self.optimizer.built:
            config["no_weight_decay"] = [
                v.path for v in self.trainable_variables if not decays(self.optimizer, v)
            ]
        return config

    def compile_from_config(self, config):
        """Compiles as saved."""
        config = dict(config)
        spared = set(config.pop("no_weight_decay", ()))
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            if spared:
                self.optimizer.exclude_from_weight_decay(
                    [v for v in self.trainable_variables if v.path in spared]
                )
            self.optimizer.build(self.trainable_variables)


class Sizes(NamedTuple):
    """The four numbers that a model's letter stands for."""

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

#: Of each hybrid: its letter, the units in each stage of its ResNet, and the patch size on the
#: feature map. What stands behind the slash is the stride in all, by name: that of R+Ti/16 is 32.
#: Sources: Dosovitskiy et al. 2021, table 3 (R50); Steiner et al. 2021 (R, R26).
HYBRIDS = {
    "R+Ti/16": ("Ti", (), 8),
    "R26+S/32": ("S", (2, 2, 2, 2), 1),
    "R26+B/32": ("B", (2, 2, 2, 2), 1),
    "R50+B/16": ("B", (3, 4, 9), 1),
    "R50+B/32": ("B", (3, 4, 6, 3), 1),
    "R50+L/16": ("L", (3, 4, 9), 1),
    "R50+L/32": ("L", (3, 4, 6, 3), 1),
}


def parse_variant(variant):
    """Returns what a name such as "B/16" or "R50+B/16" stands for.

    Returns:
        The `Sizes`, the patch size, and the units in each stage of the stem (None for no stem).
    Raises:
        InputError: If the name is neither LETTER/PATCH nor a hybrid's.
    """
    if variant in HYBRIDS:
        letter, num_units, patch_size = HYBRIDS[variant]
        return VARIANTS[letter], patch_size, num_units
    match = re.fullmatch(r"(\w+)/([1-9]\d*)", str(variant))
    if not match or match[1] not in VARIANTS:
        examples = [f"{letter}/{patch}" for letter in VARIANTS for patch in (8, 14, 16, 32)]
        raise InputError(
            f"`variant` must be one of {', '.join(VARIANTS)}, a slash and a patch size, such as "
            f'"B/16", or one of {", ".join(HYBRIDS)}. '
            f"Received: variant={variant!r}.{nearest(str(variant), [*examples, *HYBRIDS])}"
        )
    return VARIANTS[match[1]], int(match[2]), None


def image_shape(image_size, patch_size=1):
    """Returns `(height, width)` from an integer or a pair, checked against the patch size.

    Args:
        image_size: Side in pixels, or (height, width).
        patch_size: Pixels between two patches; of a hybrid, with its stem.
    Raises:
        InputError: If a side is not a positive integer divisible by `patch_size`.
    """
    try:
        pair = (image_size,) if isinstance(image_size, int) else tuple(image_size)
        pair = pair * 2 if len(pair) == 1 else pair
        height, width = (int(side) for side in pair)
        whole = (height, width) == pair and min(pair) > 0
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise InputError(
            "`image_size` must be a positive integer or a pair (height, width) of them. "
            f"Received: image_size={image_size!r}."
        )
    if height % patch_size or width % patch_size:
        down = [max(side // patch_size, 1) * patch_size for side in (height, width)]
        up = [-(-side // patch_size) * patch_size for side in (height, width)]
        raise InputError(
            "`image_size` must be divisible by the patch size. "
            f"Received: image_size={image_size}, patch size {patch_size}. "
            f"Nearest sizes: {down[0]}x{down[1]}, {up[0]}x{up[1]}."
        )
    return height, width


def dtype_policy(dtype):
    """Returns Keras's policy of that name; the global one for None.

    Raises:
        InputError: If there is none.
    """
    try:
        return keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    except (TypeError, ValueError) as error:
        raise InputError(
            "`dtype` must be a Keras dtype or policy, such as float32 or mixed_bfloat16. "
            f"Received: dtype={dtype!r}."
        ) from error


def head_or_features(x, num_classes, include_top):
    """Returns logits from a head that starts at zero, or what it would see; both in float32."""
    if include_top:
        head = keras.layers.Dense(
            num_classes, kernel_initializer="zeros", dtype="float32", name="head"
        )
        return head(x)
    return keras.layers.Activation("linear", dtype="float32", name="features")(x)


def vit(
    variant: str,
    *,
    image_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    classifier: str = "token",
    positions: str = "learned",
    positions_at: str = "input",
    num_registers: int = 0,
    pre_logits: bool = False,
    include_top: bool = True,
    dropout_rate: float = 0.0,
    stochastic_depth_rate: float = 0.0,
    remat: bool = False,
    layer_scale: float | None = None,
    gelu: str = "tanh",
    epsilon: float = 1e-6,
    hidden_dim: int | None = None,
    mlp_dim: int | None = None,
    num_heads: int | None = None,
    num_layers: int | None = None,
    dtype=None,
    name: str | None = None,
) -> VisionModel:
    """Builds a Vision Transformer as a functional Keras model.

    Args:
        variant: A letter of `VARIANTS` (Ti, S, B, L, H, g, G), a slash and any patch size: "B/16".
            Or a hybrid of `HYBRIDS`: "R50+B/16".
        image_size: Side in pixels, or (height, width); divisible by the patch size.
        num_classes: Number of logits.
        classifier: What represents the image: "token", the class token; "gap", the mean of all
            patch tokens, "gap_norm" if the last norm comes after it (timm's); "map", attention
            pooling over them (no class token in all three);
            "token_gap", the class token and the mean beside it, so 2 d numbers (DINOv2's).
        positions: "learned" (the paper's), "learned_2d", "sincos_2d", "none", or "relative":
            learned vectors in each block's attention, for how far two tokens stand apart.
        positions_at: Where positions other than relative ones are added: "input", once;
            "every_block", before each block, with weights of its own; "every_block_shared".
        num_registers: Learned tokens that stand for nothing, between class token and patches.
        pre_logits: Whether a dense layer of the same width and a tanh come before the head,
            as in the original pretraining on ImageNet-21k.
        include_top: Without it the output is what the head would see.
        dropout_rate: Dropout after the positions and after every dense layer except qkv.
        stochastic_depth_rate: Rate in the last block; it grows linearly from 0 in the first.
        remat: Whether blocks are computed again on the way back, for less memory in training.
        layer_scale: Initial LayerScale value; None for none.
        gelu: "tanh", as the paper's authors train, or "exact".
        epsilon: Added to the variance in every LayerNorm.
        hidden_dim, mlp_dim, num_heads, num_layers: Sizes that replace those of the letter.
        dtype: Keras dtype or policy of all layers, such as "mixed_bfloat16". Logits and features
            are always float32.
        name: Name of the model.
    Input shape: `(b, h, w, 3)`, values in [-1, 1], or uint8 from 0 to 255.
    Output shape: `(b, num_classes)` logits, or `(b, d)` features (2 d with "token_gap").
        The head starts at zero.
    Raises:
        InputError: (a ValueError) If an argument is unknown or does not fit another.
    Source: Dosovitskiy et al. 2021, section 3; https://github.com/google-research/vision_transformer.
    """
    sizes, patch_size, num_units = parse_variant(variant)
    given = Sizes(hidden_dim, mlp_dim, num_heads, num_layers)
    sizes = Sizes(*(new or old for new, old in zip(given, sizes, strict=True)))
    stem = None
    if num_units is not None:
        stem = HybridStem(num_units, dtype=dtype_policy(dtype), name="stem")
    stride = patch_size * (stem.stride if stem else 1)
    height, width = image_shape(image_size, stride)
    for label, value, choices in (
        ("classifier", classifier, CLASSIFIERS),
        ("positions", positions, POSITIONS),
        ("positions_at", positions_at, POSITIONS_AT),
        ("gelu", gelu, GELUS),
    ):
        if value not in choices:
            raise InputError(f"`{label}` must be one of {choices}. Received: {label}={value!r}.")
    if positions_at != "input" and positions not in PLACES[:-1]:
        raise InputError(
            f"`positions_at` must be input unless `positions` is one of {PLACES[:-1]}. "
            f"Received: positions_at={positions_at!r}, positions={positions!r}."
        )
    if sizes.hidden_dim % sizes.num_heads:
        raise InputError(
            "`hidden_dim` must be divisible by `num_heads`. "
            f"Received: hidden_dim={sizes.hidden_dim}, num_heads={sizes.num_heads}."
        )
    if num_registers < 0:
        raise InputError(
            f"`num_registers` must be 0 or more. Received: num_registers={num_registers}."
        )
    if include_top and num_classes < 1:
        raise InputError(f"`num_classes` must be at least 1. Received: num_classes={num_classes}.")
    for label, rate in (
        ("dropout_rate", dropout_rate),
        ("stochastic_depth_rate", stochastic_depth_rate),
    ):
        if not 0 <= rate < 1:
            raise InputError(f"`{label}` must lie in [0, 1). Received: {label}={rate}.")
    policy = dtype_policy(dtype)

    # Image to tokens
    images = keras.Input((height, width, 3), name="images", dtype="float32")
    x = stem(images) if stem else images  # (b, h/s, w/s, c)
    x = Patches(patch_size, dtype=policy, name="patches")(x)  # (b, n, p*p*c)
    grid, class_token = (height // stride, width // stride), "token" in classifier
    encoder = PatchEncoder(
        grid=grid,
        hidden_dim=sizes.hidden_dim,
        class_token=class_token,
        num_registers=num_registers,
        positions=positions if positions in PLACES and positions_at == "input" else "none",
        dropout_rate=dropout_rate,
        dtype=policy,
        name="patch_encoder",
    )
    x = encoder(x)  # (b, t, d)

    def place(name):
        return PositionEmbedding(
            grid, positions, class_token, num_registers, dtype=policy, name=name
        )

    # Encoder
    shared = place("positions") if positions_at == "every_block_shared" else None
    for i in range(sizes.num_layers):
        if positions_at != "input":
            x = (shared or place(f"positions_{i:02d}"))(x)
        x = TransformerBlock(
            num_heads=sizes.num_heads,
            mlp_dim=sizes.mlp_dim,
            dropout_rate=dropout_rate,
            stochastic_depth_rate=stochastic_depth_rate * i / max(sizes.num_layers - 1, 1),
            layer_scale=layer_scale,
            gelu=gelu,
            epsilon=epsilon,
            relative_positions=positions == "relative",
            remat=remat,
            dtype=policy,
            name=f"block_{i:02d}",
        )(x)
    norm = LayerNormalization(epsilon=epsilon, dtype=policy, name="norm")
    x = x if classifier == "gap_norm" else norm(x)

    # Tokens to logits
    patches = x[:, encoder.num_prefix_tokens :] if encoder.num_prefix_tokens else x  # (b, n, d)
    if classifier == "token":
        x = x[:, 0]  # (b, d)
    elif classifier == "map":
        x = MapHead(sizes.num_heads, sizes.mlp_dim, dtype=policy, name="map_head")(patches)
    else:
        mean = keras.layers.GlobalAveragePooling1D(dtype=policy, name="pool")(patches)
        if classifier == "token_gap":
            x = keras.layers.Concatenate(dtype=policy, name="token_and_pool")([x[:, 0], mean])
        else:
            x = norm(mean) if classifier == "gap_norm" else mean
    if pre_logits:
        x = keras.layers.Dense(
            sizes.hidden_dim, activation="tanh", dtype=policy, name="pre_logits"
        )(x)
    x = head_or_features(x, num_classes, include_top)
    default_name = re.sub(r"\W", "_", f"vit_{variant}".lower())
    return VisionModel(images, x, name=name or default_name)
