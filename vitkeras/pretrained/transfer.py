"""`transfer_weights(source, target)`: initializes a model with the weights of another one."""

import dataclasses
import re
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from vitkeras.errors import InputError
from vitkeras.models.config import ResNetConfig, ViTConfig, model_config
from vitkeras.pretrained.mapping import PATCH_KERNEL
from vitkeras.pretrained.resizing import (
    check_resize,
    resize_matrix,
    resize_patch_kernel,
    resize_positions,
)

#: Weights of a `PositionEmbedding`, in the patch encoder or before a block.
POSITION_WEIGHTS = re.compile(r"(?:patch_encoder/)?positions(?:_\d+)?/(embedding|rows|columns)")
#: Layers that belong to the task of the source and may stay unused.
TASK_LAYERS = ("pre_logits/", "head/")


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """Weights to copy from.

    Args:
        weights: From path in a model to an object with a `shape` that NumPy converts to an array.
        config: Architecture of the model that they belong to.
        names: Names of the weights in their file, by path.
    """

    weights: dict[str, Any]
    config: ViTConfig | ResNetConfig
    names: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_model(cls, model: keras.Model) -> "WeightSource":
        """Returns the weights of a model of this package."""
        config = model_config(model, "source")
        return cls({weight.path: weight for weight in model.weights}, config)

    def describe(self, path: str) -> str:
        """Returns the path of a weight, with its name in the file."""
        return f"{path} ({self.names[path]})" if path in self.names else path


class TransferReport(dict):
    """Lists of weight paths: "copied", "resized", "initialized" (not loaded) and "unused"."""

    def __str__(self):
        lines = [f"{len(self['copied'])} weights copied"]
        for what in ("resized", "initialized", "unused"):
            if self[what]:
                listed = ", ".join(self[what][:8]) + (", ..." if len(self[what]) > 8 else "")
                lines.append(f"{len(self[what])} {what}: {listed}")
        return "; ".join(lines)


def transfer_weights(
    source: keras.Model, target: keras.Model, resize: str = "zoom"
) -> TransferReport:
    """Copies all weights except the head.

    The position embedding is resized if the grids differ, and the patch projection if the patch
    sizes differ. Either all weights are copied or none. The head of `target` is not changed, since
    a new task needs a new head.

    Args:
        source: A model made by `vit`, `resnet` or `from_pretrained`.
        target: A model of the same architecture; image size, patch size and number of classes may
            differ. Changed in place.
        resize: How position embeddings are resized, one of `resizing.RESIZES`. The convention of
            the weights' origin reproduces its numbers.
    Returns:
        A `TransferReport`; `print` shows a summary.
    Warns:
        UserWarning: If `gelu` or `epsilon` of the two models differ.
    Raises:
        InputError: (a ValueError) If the architectures differ otherwise, or a model was not made by
            this package.
    """
    check_resize(resize)
    weights = WeightSource.from_model(source)
    notes = check_architecture(weights.config, model_config(target, "target"), source.name)
    report = copy_weights(weights, target, resize)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return report


def copy_head(
    source: keras.Model,
    target: keras.Model,
    source_names: Sequence[str],
    target_names: Sequence[str],
) -> list[str]:
    """Copies kernel and bias of the head for the classes that have the same name in both models.

    The other classes of `target` keep their values.

    Args:
        source: A model of this package with a head.
        target: A model with a head on the same features. Changed in place.
        source_names: Class names in the order of the logits of `source`.
        target_names: Class names in the order of the logits of `target`.
    Returns:
        The names that were copied, in the order of `target`.
    Raises:
        InputError: If no name is in both, or the heads have different inputs.
    """
    heads = [model.get_layer("head") for model in (source, target)]
    inputs = [
        (
            getattr(config, "classifier", None),
            getattr(config, "pre_logits", False),
            head.input.shape[-1],
        )
        for head, config in zip(heads, map(model_config, (source, target)), strict=True)
    ]
    if inputs[0] != inputs[1]:
        raise InputError(
            "A head can only be kept on the same features: classifier, pre_logits and width. "
            f"Received: {inputs[0]} in {source.name}, {inputs[1]} in the model."
        )
    columns = {name: i for i, name in enumerate(source_names)}
    kept = [name for name in target_names if name in columns]
    if not kept:
        raise InputError(
            "A head can only be kept if a class name is the same. "
            f"Received: {', '.join(source_names[:5])} and {', '.join(target_names[:5])}."
        )
    old = [columns[name] for name in kept]
    new = [list(target_names).index(name) for name in kept]
    for weight, value in zip(heads[1].weights, heads[0].get_weights(), strict=True):
        array = np.array(weight)
        array[..., new] = value[..., old]
        weight.assign(array)
    return kept


def check_architecture(
    source: ViTConfig | ResNetConfig, target: ViTConfig | ResNetConfig, origin: Any
) -> list[str]:
    """Checks that the weights of one architecture fit another, apart from the head.

    Args:
        source: Architecture of the weights.
        target: Architecture of the model.
        origin: Name of the weights, for the messages.
    Returns:
        Sentences to warn of: the weights fit, but the outputs will differ.
    Raises:
        InputError: If the weights do not fit.
    """
    if type(source) is not type(target):
        kinds = [type(each).__name__.removesuffix("Config") for each in (source, target)]
        raise InputError(
            "The weights must be of the model's kind. "
            f"Received: {origin}, a {kinds[0]}, for a {kinds[1]}."
        )
    differing = [
        f"{name}={expected!r} in the model, {actual!r} in {origin}"
        for name, (actual, expected) in _structure(source, target).items()
        if actual != expected
    ]
    if differing:
        raise InputError(
            "The model must have the architecture of its weights. "
            f"Received: {'; '.join(differing)}."
        )
    if isinstance(source, ResNetConfig):
        return []
    return [
        f"The weights of {origin} were trained with {field}={getattr(source, field)!r}, the model "
        f"has {getattr(target, field)!r}: its outputs will differ. Build the model with "
        f"{field}={getattr(source, field)!r}, or use `from_pretrained`."
        for field in ("gelu", "epsilon")
        if getattr(source, field) != getattr(target, field)
    ]


def _structure(source, target):
    """Returns pairs of values that must agree, by name of the field."""
    if isinstance(source, ResNetConfig):
        return {
            name: (getattr(source, name), getattr(target, name))
            for name in ("num_units", "width_factor", "channels")
        }
    names = (
        "hidden_dim", "mlp_dim", "num_heads", "num_layers", "stem_units", "channels", "positions",
        "positions_at", "num_registers", "class_token",
    )  # fmt: skip
    pairs = {name: (getattr(source, name), getattr(target, name)) for name in names}
    pairs["layer_scale"] = tuple(
        None if each.layer_scale is None else "a LayerScale" for each in (source, target)
    )
    pairs["classifier"] = tuple(
        "map" if each.classifier == "map" else "not map" for each in (source, target)
    )
    if source.positions == target.positions == "relative":
        pairs["grid"] = (source.grid, target.grid)
    return pairs


def copy_weights(
    source: WeightSource, target: keras.Model, resize: str, with_head: bool = False
) -> TransferReport:
    """Copies weights as `transfer_weights` does; `with_head` copies the head too.

    Raises:
        InputError: If a weight of `target` has no counterpart of its shape, or a weight of `source`
            other than its head and pre_logits has none. Nothing is copied then.
    """
    report = TransferReport(copied=[], resized=[], initialized=[], unused=[])
    values, problems = [], []
    for weight in target.weights:
        path, shape = weight.path, tuple(weight.shape)
        if path.startswith("head/") and not with_head:
            report["initialized"].append(path)
            continue
        if path not in source.weights:
            problems.append(f"{path}: missing")
            continue
        value = source.weights[path]
        resized = _resize(path, value, source.config, target.config, resize)
        if (value if resized is None else resized).shape != shape:
            problems.append(f"{source.describe(path)}: {tuple(value.shape)}, expected {shape}")
        elif resized is None:
            values.append((weight, value))
            report["copied"].append(path)
        else:
            values.append((weight, resized))
            report["resized"].append(path)
    used = {weight.path for weight, _ in values}
    report["unused"] = sorted(set(source.weights) - used)
    problems += [
        f"{source.describe(path)}: {tuple(source.weights[path].shape)}, not in the model"
        for path in report["unused"]
        if not path.startswith(TASK_LAYERS)
    ]
    if problems:
        raise InputError(
            "The weights must fit the model. "
            f"Received: {len(problems)} weights that do not fit: {'; '.join(problems[:5])}"
            + ("; ..." if len(problems) > 5 else ".")
        )
    # All values are read before the first assignment: a damaged file must not change the model.
    for weight, value in [(weight, np.asarray(value)) for weight, value in values]:
        weight.assign(value)
    return report


def _resize(path, value, source, target, resize):
    """Returns a weight that depends on grid or patch size, resized; None for any other weight."""
    if isinstance(source, ResNetConfig):
        return None
    positions = POSITION_WEIGHTS.fullmatch(path)
    if positions and source.grid != target.grid:
        if positions[1] == "embedding":
            prefix = int(source.class_token)
            return resize_positions(value, source.grid, target.grid, prefix, resize)
        axis = ("rows", "columns").index(positions[1])
        if source.grid[axis] != target.grid[axis]:
            return resize_matrix(source.grid[axis], target.grid[axis], resize) @ np.asarray(value)
    if path == PATCH_KERNEL and source.patch_size != target.patch_size:
        width, side = value.shape[1], source.patch_size
        kernel = np.asarray(value).reshape(side, side, -1, width)
        return resize_patch_kernel(kernel, target.patch_size).reshape(-1, width)
    return None
