"""Safetensors files of Hugging Face transformers: ViT and DINOv2, with or without a classifier.

Source: https://github.com/huggingface/transformers, models/vit, dinov2, dinov2_with_registers.
"""

import json

import numpy as np

from vitkeras.errors import InputError
from vitkeras.models.config import ViTConfig
from vitkeras.pretrained.mapping import (
    IMAGENET_MEAN_STD,
    INCEPTION_MEAN_STD,
    POSITIONS,
    PretrainedSpec,
    WeightMapping,
    count_names,
    infer_grid,
    infer_num_heads,
    require_shape,
    square_patches,
    torch_dense,
    torch_norm,
    torch_projection,
)

NAME = "Hugging Face safetensors"
#: The mask token of masked training, and a pooler that no head uses.
OPTIONAL = (r".*embeddings\.mask_token", r"(vit\.)?pooler\.dense\..*")
GELUS = {
    "gelu": "exact", "gelu_python": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh",
    "gelu_accurate": "tanh", "gelu_fast": "tanh",
}  # fmt: skip
PROJECTION = "embeddings.patch_embeddings.projection.weight"
#: Names within a layer that differ between the two families.
VIT = ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")
DINO = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")


def _prefix(shapes):
    return next(
        (name.removesuffix(PROJECTION) for name in shapes if name.endswith(PROJECTION)), None
    )


def matches(shapes):
    """Returns whether these are the names of such a file."""
    prefix = _prefix(shapes)
    return prefix is not None and any(
        f"{prefix}encoder.layer.0.{names[0]}.weight" in shapes for names in (VIT, DINO)
    )


def read_spec(arrays, config, hints):
    """Returns the `PretrainedSpec` of a file; `config` has the content of its JSON files."""
    shapes, prefix = arrays.shapes, _prefix(arrays.shapes)
    dino = f"{prefix}encoder.layer.0.norm1.weight" in shapes
    names = DINO if dino else VIT
    d, patch_size = square_patches(arrays, f"{prefix}{PROJECTION}")
    distilled = f"{prefix}embeddings.distillation_token" in shapes
    if distilled or f"{prefix}embeddings.cls_token" not in shapes:
        raise InputError(
            "A Hugging Face ViT must have a class token and no distillation token. "
            f"Received: {arrays.path}, which has "
            f"{'a distillation token' if distilled else 'no class token'}."
        )
    mlp_dim = require_shape(arrays, f"{prefix}encoder.layer.0.{names[2]}.weight", 2)[0]
    num_layers = count_names(shapes, f"{prefix}encoder.layer.{{}}.{names[0]}.weight")
    registers = f"{prefix}embeddings.register_tokens"
    num_classes, head_inputs = None, d
    if "classifier.weight" in shapes:
        num_classes, head_inputs = require_shape(arrays, "classifier.weight", 2)
    if head_inputs not in (d, 2 * d):
        raise InputError(
            "A classifier must take the class token, or class token and mean of the patches. "
            f"Received: {arrays.path}, whose classifier takes {head_inputs} values at width {d}."
        )
    grid = _grid(arrays, prefix, patch_size, config, dict(hints.get("grid", {})))
    num_heads, warnings = _num_heads(arrays, (d, mlp_dim, num_layers), config, hints)
    activation = config.get("hidden_act", "gelu")
    if activation not in GELUS:
        raise InputError(
            f"`hidden_act` in config.json must be one of {', '.join(GELUS)}. "
            f"Received: {arrays.path}, with hidden_act={activation!r}."
        )
    model = ViTConfig(
        hidden_dim=d,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        num_layers=num_layers,
        patch_size=patch_size,
        image_size=(grid[0] * patch_size, grid[1] * patch_size),
        classifier="token" if head_inputs == d else "token_gap",
        num_registers=require_shape(arrays, registers, 3)[1] if registers in shapes else 0,
        layer_scale=1.0 if dino else None,
        num_classes=num_classes,
        gelu=GELUS[activation],
        epsilon=_epsilon(config.get("layer_norm_eps", 1e-6 if dino else 1e-12), arrays.path),
    )
    return PretrainedSpec(
        model,
        position_resize="bicubic_antialias" if registers in shapes else "bicubic",
        mean_std=_mean_std(config, arrays.path)
        or (IMAGENET_MEAN_STD if dino else INCEPTION_MEAN_STD),
        naming=(prefix, names),
        warnings=warnings,
    )


def _grid(arrays, prefix, patch_size, config, hints):
    """Returns the grid, from the user, from config.json or from the number of positions."""
    positions = require_shape(arrays, f"{prefix}embeddings.position_embeddings", 3)[1] - 1
    size = config.get("image_size")
    size = (size, size) if isinstance(size, int) else size
    if isinstance(size, (list, tuple)) and len(size) == 2 and hints.get("given") is None:
        stated = tuple(side // patch_size for side in size)
        hints["given"] = stated if stated[0] * stated[1] == positions else None
    return infer_grid(positions, arrays.path, **hints)


def _num_heads(arrays, sizes, config, hints):
    """Returns the number of heads and warnings."""
    hints, stated = dict(hints.get("num_heads", {})), config.get("num_attention_heads")
    if stated is not None and hints.get("given") not in (None, stated):
        raise InputError(
            "`num_heads` must be the value in config.json. "
            f"Received: num_heads={hints['given']}, {arrays.path} has {stated}."
        )
    hints["given"] = hints.get("given") if stated is None else stated
    return infer_num_heads(sizes, arrays.path, **hints)


def _epsilon(value, path):
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise InputError(
            "`layer_norm_eps` in config.json must be a number in [0, 1). "
            f"Received: {path}, with layer_norm_eps={value!r}."
        )
    return float(value)


def _mean_std(config, path):
    """Returns the normalization in preprocessor_config.json, for pixels in [0, 1]; None without it.

    A `rescale_factor` other than 1 / 255 is included.
    """
    if "image_mean" not in config and "do_normalize" not in config:
        return None
    try:
        if config.get("offset"):
            raise ValueError("offset=True")
        normalize = config.get("do_normalize", True)
        values = (config["image_mean"], config["image_std"]) if normalize else (0.0, 1.0)
        mean, std = (np.broadcast_to(np.array(value, float), (3,)) for value in values)
        factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
        scale = 255 * factor
        return tuple((mean / scale).tolist()), tuple((std / scale).tolist())
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            "preprocessor_config.json must state image_mean and image_std; pass `mean_std` "
            f"instead. Received: the file beside {path} ({error!r})."
        ) from error


def weight_map(spec):
    """Returns the `WeightMapping`s of a file."""
    config, (prefix, (norm_1, norm_2, mlp_in, mlp_out)) = spec.config, spec.naming
    d, f = config.hidden_dim, config.mlp_dim
    embeddings, n = f"{prefix}embeddings", config.grid[0] * config.grid[1]
    token, positions = f"{embeddings}.cls_token", f"{embeddings}.position_embeddings"
    mappings = [
        *torch_projection(f"{embeddings}.patch_embeddings.projection", config),
        WeightMapping(POSITIONS, (positions,), (1, 1 + n, d)),
        WeightMapping("patch_encoder/class_token", (token,), (1, 1, d)),
    ]
    if config.num_registers:
        name, shape = f"{embeddings}.register_tokens", (1, config.num_registers, d)
        mappings.append(WeightMapping("patch_encoder/registers", (name,), shape))
    for i in range(config.num_layers):
        path, name = f"block_{i:02d}", f"{prefix}encoder.layer.{i}"
        parts = [f"{name}.attention.attention.{part}" for part in ("query", "key", "value")]
        kernels, biases = (tuple(f"{part}.{end}" for part in parts) for end in ("weight", "bias"))
        mappings += [
            *torch_norm(f"{path}/attention_norm", f"{name}.{norm_1}", d),
            WeightMapping(f"{path}/attention/qkv/kernel", kernels, (d, d), axes=(1, 0)),
            WeightMapping(f"{path}/attention/qkv/bias", biases, (d,)),
            *torch_dense(f"{path}/attention/out", f"{name}.attention.output.dense", d, d),
            *torch_norm(f"{path}/mlp_norm", f"{name}.{norm_2}", d),
            *torch_dense(f"{path}/mlp_in", f"{name}.{mlp_in}", d, f),
            *torch_dense(f"{path}/mlp_out", f"{name}.{mlp_out}", f, d),
        ]
        if config.layer_scale is not None:
            scales = [f"{name}.layer_scale{number}.lambda1" for number in (1, 2)]
            mappings += [
                WeightMapping(f"{path}/attention_scale/gamma", (scales[0],), (d,)),
                WeightMapping(f"{path}/mlp_scale/gamma", (scales[1],), (d,)),
            ]
    mappings += torch_norm("norm", f"{prefix}layernorm", d)
    if config.num_classes is not None:
        inputs = 2 * d if config.classifier == "token_gap" else d
        mappings += torch_dense("head", "classifier", inputs, config.num_classes)
    return mappings


def check_writable(config):
    """Checks that transformers can hold such a model.

    Raises:
        InputError: If it cannot.
    """
    plain = config.layer_scale is None
    unsupported = [
        text
        for wrong, text in (
            (config.stem_units is not None, "a stem"),
            (not config.class_token, f"classifier={config.classifier}"),
            (config.positions != "learned", f"positions={config.positions}"),
            (config.positions_at != "input", f"positions_at={config.positions_at}"),
            (config.pre_logits, "pre_logits"),
            (config.channels != 3, f"channels={config.channels}"),
            (config.num_registers and plain, "registers without LayerScale"),
            (config.classifier == "token_gap" and plain, "token_gap without LayerScale"),
            (
                not plain and config.grid[0] != config.grid[1],
                f"LayerScale and the non-square grid {config.grid}",
            ),
        )
        if wrong
    ]
    if unsupported:
        raise InputError(
            "transformers has ViTs with a class token and learned positions and, with LayerScale, "
            "DINOv2, optionally with registers and the mean of the patches beside the class token. "
            f"Received: a model with {', '.join(unsupported)}. Save it with `model.save`."
        )


def family(config) -> str:
    """Returns the `model_type` of a model in transformers."""
    if config.layer_scale is None:
        return "vit"
    return "dinov2_with_registers" if config.num_registers else "dinov2"


def writable_spec(config):
    """Returns the spec of a model with the names that transformers uses."""
    prefix = "" if config.num_classes is None else f"{family(config)}."
    return PretrainedSpec(config, naming=(prefix, VIT if config.layer_scale is None else DINO))


def add_missing_arrays(spec, arrays):
    """Returns the arrays of a model and those that transformers requires and our models lack.

    A DINOv2 classifier also takes the mean of the patches; its weights for the mean are zeros.
    """
    arrays, config = dict(arrays), spec.config
    if config.layer_scale is not None:
        arrays[f"{spec.naming[0]}embeddings.mask_token"] = np.zeros((1, config.hidden_dim), "f4")
        if config.classifier == "token" and config.num_classes is not None:
            kernel = arrays["classifier.weight"]
            arrays["classifier.weight"] = np.concatenate([kernel, np.zeros_like(kernel)], axis=1)
    return arrays


def config_files(config: ViTConfig, class_names=None) -> dict[str, str]:
    """Returns the content of config.json and preprocessor_config.json, by file name.

    Args:
        config: Architecture of the model.
        class_names: Class names in the order of the logits.
    """
    kind = family(config)
    base = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}[kind]
    suffix = "ForImageClassification" if config.num_classes is not None else "Model"
    height, width = config.image_size
    model = {
        "architectures": [base + suffix],
        "model_type": kind,
        "hidden_size": config.hidden_dim,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "patch_size": config.patch_size,
        "image_size": height if height == width else [height, width],
        "num_channels": 3,
        "hidden_act": "gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
        "layer_norm_eps": config.epsilon,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if kind == "vit":
        model["intermediate_size"] = config.mlp_dim
    else:
        ratio = config.mlp_dim / config.hidden_dim
        model["mlp_ratio"] = int(ratio) if ratio.is_integer() else ratio
        model["use_swiglu_ffn"] = False
    if kind == "dinov2_with_registers":
        model["num_register_tokens"] = config.num_registers
    if config.num_classes is not None:
        names = class_names or [f"LABEL_{i}" for i in range(config.num_classes)]
        model["id2label"] = {str(i): str(name) for i, name in enumerate(names)}
        model["label2id"] = {str(name): i for i, name in enumerate(names)}
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": INCEPTION_MEAN_STD[0],
        "image_std": INCEPTION_MEAN_STD[1],
    }
    files = {"config.json": model, "preprocessor_config.json": preprocessor}
    return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}
