"""Hugging Face transformers' safetensors files of ViT and DINOv2, bare or with a classifier.

Source: https://github.com/huggingface/transformers, models/vit, dinov2, dinov2_with_registers.
"""

import dataclasses
import json

import numpy as np

from vitkeras.errors import InputError
from vitkeras.weights.rules import (
    HALF,
    IMAGENET,
    Rule,
    VitFacts,
    count,
    grid_of,
    heads,
    linear,
    norm,
    shape_of,
    square_patches,
    torch_projection,
)

NAME = "Hugging Face safetensors"
#: Arrays that a file may have and a model not: for masked training, and a pooler without a head.
SPARE = (r".*embeddings\.mask_token", r"(vit\.)?pooler\.dense\..*")
GELUS = {
    "gelu": "exact", "gelu_python": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh",
    "gelu_accurate": "tanh", "gelu_fast": "tanh",
}  # fmt: skip
PROJECTION = "embeddings.patch_embeddings.projection.weight"
#: Names inside a layer, where the two families differ.
VIT = ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")
DINO = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")


def _prefix(shapes):
    return next(
        (name.removesuffix(PROJECTION) for name in shapes if name.endswith(PROJECTION)), None
    )


def matches(shapes):
    """Whether these are the names of such a file."""
    prefix = _prefix(shapes)
    return prefix is not None and any(
        f"{prefix}encoder.layer.0.{names[0]}.weight" in shapes for names in (VIT, DINO)
    )


def facts(arrays, config, hint):
    """Returns the `VitFacts` of a file."""
    shapes, prefix = arrays.shapes, _prefix(arrays.shapes)
    dino = f"{prefix}encoder.layer.0.norm1.weight" in shapes
    names = DINO if dino else VIT
    d, patch_size = square_patches(arrays, f"{prefix}{PROJECTION}")
    if f"{prefix}embeddings.distillation_token" in shapes or (
        f"{prefix}embeddings.cls_token" not in shapes
    ):
        raise InputError(
            "A Hugging Face ViT must have a class token and no distillation token. "
            f"Received: {arrays.path}, another kind."
        )
    mlp_dim = shape_of(arrays, f"{prefix}encoder.layer.0.{names[2]}.weight", 2)[0]
    num_layers = count(shapes, f"{prefix}encoder.layer.{{}}.{names[0]}.weight")
    places = shape_of(arrays, f"{prefix}embeddings.position_embeddings", 3)[1] - 1
    registers = f"{prefix}embeddings.register_tokens"
    classes, inputs = None, d
    if "classifier.weight" in shapes:
        classes, inputs = shape_of(arrays, "classifier.weight", 2)
    if inputs not in (d, 2 * d):
        raise InputError(
            "A classifier must take the class token, or it and the mean of the patches. "
            f"Received: {arrays.path}, whose classifier takes {inputs} numbers, at width {d}."
        )
    hints = dict(hint.get("grid", {}))
    size = _image_size(config)
    if size is not None and hints.get("given") is None:
        said = tuple(side // patch_size for side in size)
        hints["given"] = said if said[0] * said[1] == places else None
    grid = grid_of(places, arrays.path, **hints)
    given_heads = dict(hint.get("heads", {}))
    said = config.get("num_attention_heads")
    if said is not None and given_heads.get("given") not in (None, said):
        raise InputError(
            "`num_heads` must be what config.json says. "
            f"Received: num_heads={given_heads['given']}, {arrays.path} has {said}."
        )
    given_heads["given"] = given_heads.get("given") if said is None else said
    num_heads, notes = heads((d, mlp_dim, num_layers), arrays.path, **given_heads)
    activation = config.get("hidden_act", "gelu")
    if activation not in GELUS:
        raise InputError(
            f"`hidden_act` must be one of {', '.join(GELUS)}. Received: {arrays.path}, "
            f"with hidden_act={activation!r} in its config.json."
        )
    return VitFacts(
        hidden_dim=d,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        num_layers=num_layers,
        patch_size=patch_size,
        grid=grid,
        classifier="token" if inputs == d else "token_gap",
        num_registers=shape_of(arrays, registers, 3)[1] if registers in shapes else 0,
        layer_scale=dino,
        num_classes=classes,
        gelu=GELUS[activation],
        epsilon=_epsilon(config.get("layer_norm_eps", 1e-6 if dino else 1e-12), arrays.path),
        resize="bicubic_antialias" if registers in shapes else "bicubic",
        mean_std=_mean_std(config, arrays.path) or (IMAGENET if dino else HALF),
        style=(prefix, names),
        notes=notes,
    )  # fmt: skip


def _epsilon(value, path):
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise InputError(
            "`layer_norm_eps` in config.json must be a small number. "
            f"Received: {path}, with layer_norm_eps={value!r}."
        )
    return float(value)


def _mean_std(config, path):
    """Returns what preprocessor_config.json says, which was read into the same dict; or None.

    In terms of values in [0, 1], whatever it has pixels multiplied by before it normalises.
    """
    if "image_mean" not in config and "do_normalize" not in config:
        return None
    try:
        if config.get("offset"):
            raise ValueError("offset=True")
        normalise = config.get("do_normalize", True)
        mean, std = (
            np.broadcast_to(np.array(value, float), (3,))
            for value in ((config["image_mean"], config["image_std"]) if normalise else (0.0, 1.0))
        )
        scale = (
            255 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255
        )
        return tuple((mean / scale).tolist()), tuple((std / scale).tolist())
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            "preprocessor_config.json must say plainly how pixels are scaled: give `mean_std` "
            f"instead. Received: the one beside {path} ({error!r})."
        ) from error


def _image_size(config):
    size = config.get("image_size")
    if isinstance(size, int):
        return size, size
    return tuple(size) if isinstance(size, list) and len(size) == 2 else None


def rules(facts):
    """Returns the rules for a model of these facts."""
    prefix, (norm_1, norm_2, mlp_in, mlp_out) = facts.style
    p, d, f = facts.patch_size, facts.hidden_dim, facts.mlp_dim
    embeddings, places = f"{prefix}embeddings", facts.grid[0] * facts.grid[1]
    found = [
        *torch_projection(f"{embeddings}.patch_embeddings.projection", p, d),
        Rule("patch_encoder/positions/embedding", (f"{embeddings}.position_embeddings",),
             (1, 1 + places, d)),
        Rule("patch_encoder/class_token", (f"{embeddings}.cls_token",), (1, 1, d)),
    ]  # fmt: skip
    if facts.num_registers:
        name = f"{embeddings}.register_tokens"
        found.append(Rule("patch_encoder/registers", (name,), (1, facts.num_registers, d)))
    for i in range(facts.num_layers):
        ours, theirs = f"block_{i:02d}", f"{prefix}encoder.layer.{i}"
        parts = [f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")]
        kernels, biases = (tuple(f"{part}.{end}" for part in parts) for end in ("weight", "bias"))
        found += [
            *norm(f"{ours}/attention_norm", f"{theirs}.{norm_1}.weight", f"{theirs}.{norm_1}.bias",
                  d),
            Rule(f"{ours}/attention/qkv/kernel", kernels, (d, d), axes=(1, 0)),
            Rule(f"{ours}/attention/qkv/bias", biases, (d,)),
            *linear(f"{ours}/attention/out", f"{theirs}.attention.output.dense", d, d),
            *norm(f"{ours}/mlp_norm", f"{theirs}.{norm_2}.weight", f"{theirs}.{norm_2}.bias", d),
            *linear(f"{ours}/mlp_in", f"{theirs}.{mlp_in}", d, f),
            *linear(f"{ours}/mlp_out", f"{theirs}.{mlp_out}", f, d),
        ]  # fmt: skip
        if facts.layer_scale:
            found += [
                Rule(f"{ours}/attention_scale/gamma", (f"{theirs}.layer_scale1.lambda1",), (d,)),
                Rule(f"{ours}/mlp_scale/gamma", (f"{theirs}.layer_scale2.lambda1",), (d,)),
            ]
    found += norm("norm", f"{prefix}layernorm.weight", f"{prefix}layernorm.bias", d)
    if facts.num_classes is not None:
        inputs = 2 * d if facts.classifier == "token_gap" else d
        found += linear("head", "classifier", inputs, facts.num_classes)
    return found


def check_writable(facts):
    """Checks that transformers has such a model.

    Raises:
        InputError: If not.
    """
    wrong = [
        text
        for bad, text in (
            (facts.num_units is not None, "a stem"),
            (not facts.class_token, f"classifier={facts.classifier!r}"),
            (facts.positions != "learned", f"positions={facts.positions!r}"),
            (facts.positions_at != "input", f"positions_at={facts.positions_at!r}"),
            (facts.pre_logits, "pre_logits"),
            (facts.num_registers and not facts.layer_scale, "registers without LayerScale"),
            (
                facts.classifier == "token_gap" and not facts.layer_scale,
                "classifier='token_gap' without LayerScale",
            ),
            (
                facts.layer_scale and facts.grid[0] != facts.grid[1],
                f"LayerScale and a grid of {facts.grid}, which is no square",
            ),
        )
        if bad
    ]
    if wrong:
        raise InputError(
            "transformers has ViTs with a class token and learned positions, and with LayerScale "
            "its DINOv2, which may have registers and the patches' mean beside the token. "
            f"Received: a model with {', '.join(wrong)}. Keep it with `model.save`."
        )


def family(facts):
    """Returns the `model_type` of a model, as transformers calls it."""
    if not facts.layer_scale:
        return "vit"
    return "dinov2_with_registers" if facts.num_registers else "dinov2"


def named(facts):
    """Returns the facts with the names that such a model has in a file."""
    prefix = "" if facts.num_classes is None else f"{family(facts)}."
    return dataclasses.replace(facts, style=(prefix, DINO if facts.layer_scale else VIT))


def finish(facts, arrays):
    """Adds to the arrays of a model what transformers wants and we do not have.

    A DINOv2 classifier takes the mean of the patches too: its weights for that are zero then.
    """
    arrays = dict(arrays)
    if facts.layer_scale:
        arrays[f"{facts.style[0]}embeddings.mask_token"] = np.zeros((1, facts.hidden_dim), "f4")
        if facts.classifier == "token" and facts.num_classes is not None:
            kernel = arrays["classifier.weight"]
            arrays["classifier.weight"] = np.concatenate([kernel, np.zeros_like(kernel)], axis=1)
    return arrays


def config_files(facts, image_size, class_names=None):
    """Returns the text of config.json and preprocessor_config.json, by file name.

    Args:
        facts: Of the model.
        image_size: `(height, width)`.
        class_names: In the order of the logits.
    """
    kind = family(facts)
    base = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}[kind]
    end = "ForImageClassification" if facts.num_classes is not None else "Model"
    height, width = image_size
    config = {
        "architectures": [base + end],
        "model_type": kind,
        "hidden_size": facts.hidden_dim,
        "num_attention_heads": facts.num_heads,
        "num_hidden_layers": facts.num_layers,
        "patch_size": facts.patch_size,
        "image_size": height if height == width else [height, width],
        "num_channels": 3,
        "hidden_act": "gelu" if facts.gelu == "exact" else "gelu_pytorch_tanh",
        "layer_norm_eps": facts.epsilon,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if kind == "vit":
        config["intermediate_size"] = facts.mlp_dim
    else:
        ratio = facts.mlp_dim / facts.hidden_dim
        config["mlp_ratio"] = int(ratio) if ratio.is_integer() else ratio
        config["use_swiglu_ffn"] = False
    if kind == "dinov2_with_registers":
        config["num_register_tokens"] = facts.num_registers
    if facts.num_classes is not None:
        names = class_names or [f"LABEL_{i}" for i in range(facts.num_classes)]
        config["id2label"] = {str(i): str(name) for i, name in enumerate(names)}
        config["label2id"] = {str(name): i for i, name in enumerate(names)}
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    files = {"config.json": config, "preprocessor_config.json": preprocessor}
    return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}
