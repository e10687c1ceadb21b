"""`vit(...)`: one functional builder for every Vision Transformer of the paper.

Layer names are a contract: rescaling, stem, patches, patch_encoder, block_00 ..., norm, pre_logits,
head; and, in models that have them, positions, positions_00 ..., pool, map_head, features.
"""

import re

import keras

from vitkeras.errors import InputError
from vitkeras.keras_internals import uses_weight_decay
from vitkeras.layers.embeddings import POSITIONS as TOKEN_POSITIONS
from vitkeras.layers.embeddings import PatchEncoder, Patches, PositionEmbedding
from vitkeras.layers.hybrid_stem import HybridStem
from vitkeras.layers.pooling import MapHead
from vitkeras.layers.transformer import LayerNormalization, TransformerBlock
from vitkeras.models.config import ResNetConfig, ViTConfig, config_from_dict, config_to_dict

if keras.backend.backend() == "tensorflow":
    from vitkeras.trainers.tensorflow import ReplicaConsistentModel as Base
else:  # the TensorFlow train step does not run on other backends
    Base = keras.Model  # type: ignore[misc]


@keras.saving.register_keras_serializable(package="vitkeras")
class VisionModel(Base):
    """A functional Keras model with a description of its architecture, `config`.

    On the TensorFlow backend it trains and evaluates to the same numbers on any number of replicas
    (`ReplicaConsistentModel`); on other backends it trains as Keras does. Saving keeps the config,
    the frozen layers and the weights that are excluded from weight decay, on every backend.
    """

    #: None for a model that was made from layers of another one.
    config: ViTConfig | ResNetConfig | None = None

    def get_config(self):
        architecture = None if self.config is None else config_to_dict(self.config)
        return {**super().get_config(), "architecture": architecture}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        if "architecture" not in config:
            raise InputError(
                "A saved model must be of vitkeras 0.2 or later. Received: a model of an earlier "
                "version, which takes pixels in [-1, 1]. Load it with that version, write its "
                "weights with `save_weights`, and read them with `from_pretrained`."
            )
        architecture = config.pop("architecture")
        model = super().from_config(config, custom_objects)
        if architecture is not None:
            model.config = config_from_dict(architecture)
        for layer in model.layers:
            if not layer.trainable:  # set before the layer had weights
                layer.trainable = True  # on the TensorFlow backend a no-op assignment is skipped
                layer.trainable = False
        return model

    def get_compile_config(self):
        """Adds the paths of the weights that the optimizer does not decay."""
        config = super().get_compile_config()
        if config and self.optimizer is not None and self.optimizer.built:
            config["no_weight_decay"] = [
                v.path for v in self.trainable_variables if not uses_weight_decay(self.optimizer, v)
            ]
        return config

    def compile_from_config(self, config):
        """Compiles as saved, with the same weights excluded from weight decay."""
        config = dict(config)
        excluded = set(config.pop("no_weight_decay", ()))
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            if excluded:
                self.optimizer.exclude_from_weight_decay(
                    [v for v in self.trainable_variables if v.path in excluded]
                )
            self.optimizer.build(self.trainable_variables)


#: `vitkeras.Model(inputs, outputs)` makes a functional model as `keras.Model` does.
Model = VisionModel


def dtype_policy(dtype) -> keras.DTypePolicy:
    """Returns the Keras dtype policy of a name; the global policy for None.

    Raises:
        InputError: If the name is unknown.
    """
    try:
        return keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    except (TypeError, ValueError) as error:
        raise InputError(
            "`dtype` must be a Keras dtype or policy, such as float32 or mixed_bfloat16. "
            f"Received: dtype={dtype!r}."
        ) from error


def image_input(config: ViTConfig | ResNetConfig):
    """Returns the input of a model, and the same in [-1, 1].

    Pixels of any dtype become float32 before they are rescaled, whatever the policy of the model:
    bfloat16 would round them.
    """
    images = keras.Input((*config.image_size, config.channels), name="images", dtype="float32")
    if not config.include_rescaling:
        return images, images
    rescaling = keras.layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="rescaling")
    return images, rescaling(images)


def head_or_features(x, num_classes: int | None):
    """Returns logits from a zero-initialized head, or the features it would see; both float32."""
    if num_classes is None:
        return keras.layers.Activation("linear", dtype="float32", name="features")(x)
    return keras.layers.Dense(
        num_classes, kernel_initializer="zeros", dtype="float32", name="head"
    )(x)


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
    include_rescaling: bool = True,
    channels: int = 3,
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
    dtype: str | keras.DTypePolicy | None = None,
    name: str | None = None,
) -> VisionModel:
    """Builds a Vision Transformer as a functional Keras model.

    Args:
        variant: A letter (Ti, S, B, L, H, g, G), a slash and any patch size: "B/16". Or a hybrid
            of `HYBRIDS`: "R50+B/16".
        image_size: Side in pixels, or `(height, width)`; divisible by the patch size.
        num_classes: Number of logits.
        classifier: What represents the image: "token", the class token; "gap", the mean of the
            patch tokens; "gap_norm", the same with the last norm after the mean (timm); "map",
            attention pooling; "token_gap", class token and mean concatenated (DINOv2).
        positions: "learned" (the paper), "learned_2d", "sincos_2d", "none", or "relative": learned
            vectors in each block's attention, one for each distance between two tokens.
        positions_at: Where absolute positions are added: "input"; "every_block", with weights of
            their own before each block; "every_block_shared".
        num_registers: Number of register tokens between class token and patches.
        pre_logits: Whether a tanh layer precedes the head, as in pretraining on ImageNet-21k.
        include_top: Whether the model ends with the head. If False it returns the features.
        include_rescaling: Whether the model takes pixels in [0, 255] and rescales them itself. If
            False it takes values in [-1, 1].
        channels: Channels of the image.
        dropout_rate: Dropout after the positions and after every dense layer except qkv.
        stochastic_depth_rate: Rate of the last block; it grows linearly from 0 in the first.
        remat: Whether the backward pass recomputes each block, to save memory.
        layer_scale: Initial value of LayerScale; None for no LayerScale.
        gelu: "tanh" (the approximation that the authors train with) or "exact".
        epsilon: Added to the variance in every LayerNorm.
        hidden_dim: Width d; None for that of the letter.
        mlp_dim: Width f of the MLPs; None for that of the letter.
        num_heads: Number of attention heads; None for that of the letter.
        num_layers: Number of blocks; None for that of the letter.
        dtype: Keras dtype or policy of the layers, such as "mixed_bfloat16". Rescaling, logits and
            features are always float32.
        name: Name of the model.
    Input shape: `(b, h, w, channels)`, pixels from 0 to 255 of any numeric dtype.
    Output shape: `(b, num_classes)` logits, or `(b, d)` features (`(b, 2 * d)` with "token_gap").
        The head is initialized with zeros.
    Raises:
        InputError: (a ValueError) If an argument is unknown, out of range or does not fit another.
    Source: Dosovitskiy et al. 2021, section 3; https://github.com/google-research/vision_transformer.
    """
    config = ViTConfig.from_variant(
        variant,
        image_size=image_size,
        channels=channels,
        num_classes=num_classes if include_top else None,
        classifier=classifier,
        positions=positions,
        positions_at=positions_at,
        num_registers=num_registers,
        pre_logits=pre_logits,
        dropout_rate=dropout_rate,
        stochastic_depth_rate=stochastic_depth_rate,
        remat=remat,
        layer_scale=layer_scale,
        gelu=gelu,
        epsilon=epsilon,
        include_rescaling=include_rescaling,
        hidden_dim=hidden_dim,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        num_layers=num_layers,
    )
    if include_top and num_classes is None:
        raise InputError("`num_classes` must be a positive integer. Received: num_classes=None.")
    default_name = re.sub(r"\W", "_", f"vit_{variant}".lower())
    return build_vit(config, dtype=dtype, name=name or default_name)


def build_vit(
    config: ViTConfig, dtype: str | keras.DTypePolicy | None = None, name: str | None = None
) -> VisionModel:
    """As `vitkeras.models.builder.build_model`, for this kind of config."""
    policy = dtype_policy(dtype)

    # Image to tokens
    images, x = image_input(config)  # (b, h, w, c)
    if config.stem_units is not None:
        x = HybridStem(config.stem_units, dtype=policy, name="stem")(x)
    x = Patches(config.patch_size, dtype=policy, name="patches")(x)  # (b, n, p*p*c)
    absolute = config.positions if config.positions in TOKEN_POSITIONS else "none"
    encoder = PatchEncoder(
        grid=config.grid,
        hidden_dim=config.hidden_dim,
        class_token=config.class_token,
        num_registers=config.num_registers,
        positions=absolute if config.positions_at == "input" else "none",
        dropout_rate=config.dropout_rate,
        dtype=policy,
        name="patch_encoder",
    )
    x = encoder(x)  # (b, t, d)

    def position_embedding(name):
        return PositionEmbedding(
            config.grid,
            absolute,
            config.class_token,
            config.num_registers,
            dtype=policy,
            name=name,
        )

    # Encoder
    shared = position_embedding("positions") if config.positions_at.endswith("shared") else None
    for i in range(config.num_layers):
        if config.positions_at != "input":
            x = (shared or position_embedding(f"positions_{i:02d}"))(x)
        x = TransformerBlock(
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            dropout_rate=config.dropout_rate,
            stochastic_depth_rate=config.stochastic_depth_rate * i / max(config.num_layers - 1, 1),
            layer_scale=config.layer_scale,
            gelu=config.gelu,
            epsilon=config.epsilon,
            relative_positions=config.positions == "relative",
            remat=config.remat,
            dtype=policy,
            name=f"block_{i:02d}",
        )(x)
    norm = LayerNormalization(epsilon=config.epsilon, dtype=policy, name="norm")
    x = x if config.classifier == "gap_norm" else norm(x)

    # Tokens to logits
    patches = x[:, encoder.num_prefix_tokens :] if encoder.num_prefix_tokens else x  # (b, n, d)
    if config.classifier == "token":
        x = x[:, 0]  # (b, d)
    elif config.classifier == "map":
        x = MapHead(config.num_heads, config.mlp_dim, dtype=policy, name="map_head")(patches)
    else:
        mean = keras.layers.GlobalAveragePooling1D(
            data_format="channels_last", dtype=policy, name="pool"
        )(patches)
        if config.classifier == "token_gap":
            x = keras.layers.Concatenate(dtype=policy, name="token_and_pool")([x[:, 0], mean])
        else:
            x = norm(mean) if config.classifier == "gap_norm" else mean
    if config.pre_logits:
        x = keras.layers.Dense(
            config.hidden_dim, activation="tanh", dtype=policy, name="pre_logits"
        )(x)
    x = head_or_features(x, config.num_classes)
    model = VisionModel(images, x, name=name or f"vit_{config.hidden_dim}_{config.patch_size}")
    model.config = config
    return model
