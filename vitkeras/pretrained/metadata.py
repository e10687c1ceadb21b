"""The JSON files beside weights, which describe the model and its preprocessing."""

import json
from typing import Any

import msgspec
from etils import epath

from vitkeras.errors import InputError

#: Later files replace the fields of earlier ones.
METADATA_FILES = ("config.json", "processor_config.json", "preprocessor_config.json")
#: Bytes; the names of 21,843 classes take 2 MB.
MAX_JSON = 2**26

Channels = float | list[float]


class ModelArgs(msgspec.Struct):
    """Arguments of a timm model that differ from those of its architecture."""

    img_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    act_layer: str | None = None
    norm_layer: str | None = None
    block_fn: str | None = None


class PretrainedCfg(msgspec.Struct):
    """The preprocessing of a timm model."""

    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


class Metadata(msgspec.Struct):
    """The fields that are read from these files; others are ignored."""

    architecture: str = ""
    global_pool: str = "token"
    hidden_act: str = "gelu"
    image_size: int | tuple[int, int] | None = None
    layer_norm_eps: float = 0.0
    model_args: ModelArgs | None = None
    num_attention_heads: int | None = None
    pretrained_cfg: PretrainedCfg | None = None
    do_normalize: bool | None = None
    do_rescale: bool | None = None
    image_mean: Channels | None = None
    image_std: Channels | None = None
    offset: bool | None = None
    rescale_factor: float | None = None


def read_metadata(folder: epath.Path) -> dict[str, Any]:
    """Returns the content of the JSON files in a folder, merged into one dict.

    Raises:
        InputError: If a file is no JSON object, or a field of `Metadata` has another type.
    """
    metadata: dict[str, Any] = {}
    for name in METADATA_FILES:
        path = folder / name
        if not path.exists():
            continue
        try:
            with path.open("rb") as file:
                text = file.read(MAX_JSON + 1)
            if len(text) > MAX_JSON:
                raise ValueError(f"it has more than {MAX_JSON:,} bytes")
            content = json.loads(text)
            content = content.get("image_processor", content)
            msgspec.convert(content, Metadata)
        except (AttributeError, ValueError, RecursionError) as error:
            raise InputError(
                f"{name} must be a JSON object with the fields that Hugging Face or timm write. "
                f"Received: {path} ({error})."
            ) from error
        metadata.update(content)
    return metadata
