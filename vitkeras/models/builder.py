"""`build_model`: the model of a config of either kind."""

import keras

from vitkeras.models.config import ResNetConfig, ViTConfig
from vitkeras.models.resnet import build_resnet
from vitkeras.models.vit import VisionModel, build_vit


def build_model(
    config: ViTConfig | ResNetConfig,
    dtype: str | keras.DTypePolicy | None = None,
    name: str | None = None,
) -> VisionModel:
    """Builds the model that a config describes, with random weights.

    Args:
        config: The architecture.
        dtype: Keras dtype or policy of the layers; the global policy for None.
        name: Name of the model.
    Raises:
        InputError: (a ValueError) If `dtype` is unknown.
    """
    if isinstance(config, ResNetConfig):
        return build_resnet(config, dtype, name)
    return build_vit(config, dtype, name)
