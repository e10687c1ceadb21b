"""timm's safetensors files of a VisionTransformer, with LayerScale and registers where it has them.

Source: https://github.com/huggingface/pytorch-image-models, timm/models/vision_transformer.py.
"""

import functools
import math
import re

import numpy as np

from vitkeras.errors import InputError
from vitkeras.weights.rules import (
    HALF,
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

NAME = "timm safetensors"
GELUS = {"gelu": "exact", "gelu_tanh": "tanh"}
#: By a part of the architecture's name: heads where sizes tell others, and whose GELU is tanh.
HEADS = {
    "vit_base_patch16_gap_": 16, "so400m": 16, "giantopt": 16,
    "test_vit3": 3, "test_vit4": 3, "test_vit": 2,
}  # fmt: skip
TANH = r"patch32_siglip|large_patch16_siglip_(gap_)?512|so400m_patch16|giantopt"
#: Arrays that a file may have and a model not.
SPARE = ()


def matches(shapes):
    """Whether these are the names of such a file."""
    return "patch_embed.proj.weight" in shapes and "blocks.0.attn.qkv.weight" in shapes


def facts(arrays, config, hint):
    """Returns the `VitFacts` of a file."""
    shapes = arrays.shapes
    d, patch_size = square_patches(arrays, "patch_embed.proj.weight")
    if "dist_token" in shapes:
        raise InputError(
            f"A timm model must have no distillation token. Received: {arrays.path}, with one."
        )
    made = config.get("model_args") or {}
    mlp_dim = shape_of(arrays, "blocks.0.mlp.fc1.weight", 2)[0]
    num_layers = count(shapes, "blocks.{}.norm1.weight")
    class_token = "cls_token" in shapes
    registers = shape_of(arrays, "reg_token", 3)[1] if "reg_token" in shapes else 0
    fc_norm = "fc_norm.weight" in shapes
    pooling = config.get("global_pool", "token" if class_token else "avg")
    if pooling not in ("token", "avg") or (pooling == "token") != class_token:
        raise InputError(
            "A timm model must have a class token and use it, or none and mean pooling. "
            f"Received: {arrays.path}, with global_pool={pooling!r} and "
            f"{'a' if class_token else 'no'} class token."
        )
    if fc_norm and class_token:
        raise InputError(
            "A timm model with a class token must have its norm in front of the pooling. "
            f"Received: {arrays.path}, with fc_norm and cls_token."
        )
    embedded = shape_of(arrays, "pos_embed", 3)[1]
    size = made.get("img_size") or config.get("pretrained_cfg", {}).get("input_size", ())[-2:]
    hints = dict(hint.get("grid", {}))
    hints["beside"] = _beside(size, patch_size)
    in_front, grid = _places(embedded, class_token, registers, arrays.path, hints)
    num_heads, notes = _heads((d, mlp_dim, num_layers), arrays.path, config, made, hint)
    if not config:
        notes += (
            f"There is no config.json beside {arrays.path}, so what it would tell is assumed: "
            "exact GELU, epsilon 1e-6, and images in [-1, 1] (else give `mean_std`).",
        )
    return VitFacts(
        hidden_dim=d,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        num_layers=num_layers,
        patch_size=patch_size,
        grid=grid,
        classifier="token" if class_token else "gap_norm" if fc_norm else "gap",
        num_registers=registers,
        layer_scale="blocks.0.ls1.gamma" in shapes,
        num_classes=shape_of(arrays, "head.weight", 2)[0] if "head.weight" in shapes else None,
        gelu=_gelu(config, made, arrays.path),
        epsilon=1e-6,
        resize="bicubic_antialias",
        mean_std=_mean_std(config),
        style=("fc_norm" if fc_norm else "norm", in_front),
        notes=notes,
    )


def _mean_std(config):
    card = config.get("pretrained_cfg", {})
    return (tuple(card["mean"]), tuple(card["std"])) if {"mean", "std"} <= set(card) else HALF


def _beside(size, patch_size):
    """Returns the grid of an image size in config.json, or None."""
    size = (size, size) if isinstance(size, int) else tuple(size)
    return tuple(side // patch_size for side in size) if len(size) == 2 else None


def _heads(sizes, path, config, made, hint):
    """Returns the number of heads, and notes."""
    said, architecture = dict(hint.get("heads", {})), config.get("architecture", "")
    if said.get("given") is None:
        known = (number for part, number in HEADS.items() if part in architecture)
        said["given"] = made.get("num_heads", next(known, None))
    return heads(sizes, path, **said)


def _gelu(config, made, path):
    """Returns which GELU a timm model has.

    Raises:
        InputError: If it has another activation or norm.
    """
    tanh = re.search(TANH, config.get("architecture", ""))
    activation = made.get("act_layer", "gelu_tanh" if tanh else "gelu")
    if activation not in GELUS or made.get("norm_layer") or made.get("block_fn"):
        raise InputError(
            f"A timm model must have `act_layer` among {', '.join(GELUS)}, and timm's own "
            f"`norm_layer` and `block_fn`. Received: {path}, with model_args {made}."
        )
    return GELUS[activation]


def _places(embedded, class_token, registers, path, hints):
    """Returns how many of the positions are of tokens in front, and the grid of the others.

    timm has positions for all tokens in front, for the class token alone, or for none.
    """
    choices = dict.fromkeys((class_token + registers, int(class_token), 0))
    for said in (hints.get("given"), hints.get("beside")):
        if said is not None and embedded - said[0] * said[1] in choices:
            return embedded - said[0] * said[1], tuple(said)
    if class_token and not registers:
        choices = (1,)  # else 14 x 16 places and a class token would be taken for 15 x 15
    for in_front in choices:
        if math.isqrt(embedded - in_front) ** 2 == embedded - in_front:
            return in_front, grid_of(embedded - in_front, path, hints.get("given"))
    given, otherwise = hints.get("given"), hints.get("otherwise")
    if otherwise is not None and embedded - otherwise[0] * otherwise[1] in choices:
        return embedded - otherwise[0] * otherwise[1], tuple(otherwise)
    return int(class_token), grid_of(embedded - int(class_token), path, given)


def rules(facts):
    """Returns the rules for a model of these facts."""
    p, d, f = facts.patch_size, facts.hidden_dim, facts.mlp_dim
    last_norm, in_front = facts.style
    places, registers = facts.grid[0] * facts.grid[1], facts.num_registers
    found = [
        *torch_projection("patch_embed.proj", p, d),
        Rule("patch_encoder/positions/embedding", ("pos_embed",), (1, in_front + places, d),
             (1, facts.class_token + places, d),
             combine=functools.partial(_positions, facts.class_token, in_front)),
    ]  # fmt: skip
    if facts.class_token:
        found.append(Rule("patch_encoder/class_token", ("cls_token",), (1, 1, d)))
    if registers and in_front > facts.class_token:
        found.append(
            Rule("patch_encoder/registers", ("reg_token", "pos_embed"), shape=(1, registers, d),
                 file_shapes=((1, registers, d), (1, in_front + places, d)),
                 combine=functools.partial(_registers, facts.class_token, registers))
        )  # fmt: skip
    elif registers:
        found.append(Rule("patch_encoder/registers", ("reg_token",), (1, registers, d)))
    for i in range(facts.num_layers):
        ours, theirs = f"block_{i:02d}", f"blocks.{i}"
        found += [
            *norm(f"{ours}/attention_norm", f"{theirs}.norm1.weight", f"{theirs}.norm1.bias", d),
            *linear(f"{ours}/attention/qkv", f"{theirs}.attn.qkv", d, 3 * d),
            *linear(f"{ours}/attention/out", f"{theirs}.attn.proj", d, d),
            *norm(f"{ours}/mlp_norm", f"{theirs}.norm2.weight", f"{theirs}.norm2.bias", d),
            *linear(f"{ours}/mlp_in", f"{theirs}.mlp.fc1", d, f),
            *linear(f"{ours}/mlp_out", f"{theirs}.mlp.fc2", f, d),
        ]
        if facts.layer_scale:
            found += [
                Rule(f"{ours}/attention_scale/gamma", (f"{theirs}.ls1.gamma",), (d,)),
                Rule(f"{ours}/mlp_scale/gamma", (f"{theirs}.ls2.gamma",), (d,)),
            ]
    found += norm("norm", f"{last_norm}.weight", f"{last_norm}.bias", d)
    if facts.num_classes is not None:
        found += linear("head", "head", d, facts.num_classes)
    return found


def _positions(class_token, in_front, table):
    """Leaves out those of registers, which are added to these, and gives the class token one."""
    places = table[:, in_front:]
    if not class_token:
        return places
    token = table[:, :1] if in_front else np.zeros_like(places[:, :1])
    return np.concatenate([token, places], axis=1)


def _registers(class_token, registers, tokens, table):
    """Adds to the registers the positions that they have here and not in our models."""
    return tokens + table[:, class_token : class_token + registers]
