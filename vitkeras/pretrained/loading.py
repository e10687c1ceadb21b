"""From a weight file to a model: `load_weights` fills one, `from_pretrained` builds one."""

import dataclasses
import re
import warnings
from typing import Any

import keras
import numpy as np
from etils import epath

from vitkeras.errors import InputError
from vitkeras.io.atomic import local_copy
from vitkeras.io.keras_files import read_keras_config
from vitkeras.models.builder import build_model
from vitkeras.models.config import (
    HYBRIDS,
    RESNETS,
    ResNetConfig,
    ViTConfig,
    model_config,
)
from vitkeras.models.vit import VisionModel
from vitkeras.pretrained.archives import parsing
from vitkeras.pretrained.files import check_path, open_weights
from vitkeras.pretrained.mapping import (
    INCEPTION_MEAN_STD,
    PATCH_BIAS,
    PATCH_KERNEL,
    PretrainedSpec,
    WeightMapping,
)
from vitkeras.pretrained.resizing import RESIZES, check_resize
from vitkeras.pretrained.transfer import (
    TransferReport,
    WeightSource,
    check_architecture,
    copy_weights,
)

MeanStd = tuple[tuple[float, float, float], tuple[float, float, float]]


def load_weights(
    model: keras.Model,
    path: epath.PathLike,
    *,
    head: bool = True,
    resize: str | None = None,
    mean_std: MeanStd | None = None,
    grid: tuple[int, int] | None = None,
) -> TransferReport:
    """Loads weights into a model; the format of the file is detected from its contents.

    Position embeddings and patch projection are resized if those of the model differ. The head is
    loaded if it has the same number of classes, otherwise it is not changed. The patch projection
    absorbs the normalization that the weights were trained with, so that all models take the same
    pixels.

    Args:
        model: A model of `vit` or `resnet` with the architecture of the file; changed in place.
        path: A .npz file of Google (ViT, AugReg, hybrid), big_vision or BiT; a .safetensors file of
            Hugging Face (ViT, DINOv2) or timm, or the folder with it; a run directory; a .keras
            file. On a local disk or in an object store.
        head: Whether to load the head.
        resize: How position embeddings are resized, one of `resizing.RESIZES`; None for the
            convention of the file's origin.
        mean_std: Mean and standard deviation of red, green and blue that pixels in [0, 1] were
            normalized with in training, such as `vitkeras.pretrained.IMAGENET_MEAN_STD`. None for
            those in the JSON files beside the weights, or those of the format.
        grid: `(rows, columns)` of the position embeddings, if they are not a square.
    Returns:
        A `TransferReport`; `print` shows a summary.
    Warns:
        UserWarning: If the weights were trained with another `gelu` or `epsilon`, or the head is
            all zeros.
    Raises:
        InputError: (a ValueError) If the format is not supported, the file is damaged, or the
            architecture differs. The model is not changed then.
    """
    check_resize(resize or RESIZES[0])
    target = model_config(model)
    with open_weights(path) as (kind, content, metadata):
        if kind == "model":
            _refuse_for_saved_models(mean_std=mean_std, grid=grid)
            spec, source = PretrainedSpec(model_config(content)), WeightSource.from_model(content)
        else:
            hints = {}
            if isinstance(target, ViTConfig):
                hints = {
                    "grid": {"given": grid, "fallback": target.grid},
                    "num_heads": {"fallback": target.num_heads},
                }
            spec, source = _open_source(kind, content, metadata, hints, mean_std)
        return _fill(model, spec, source, resize, path, None if head else False)


def from_pretrained(
    path: epath.PathLike,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    *,
    resize: str | None = None,
    mean_std: MeanStd | None = None,
    grid: tuple[int, int] | None = None,
    num_heads: int | None = None,
    include_top: bool = True,
    dtype: str | keras.DTypePolicy | None = None,
    name: str | None = None,
    **fields: Any,
) -> VisionModel:
    """Builds the model that a weight file belongs to, and loads the weights.

    Args:
        path: As for `load_weights`.
        num_classes: Width of a new head, initialized with zeros; pre_logits is dropped. None for
            the head of the file, or for features if it has none.
        image_size: Side in pixels, or `(height, width)`; None for that of the file.
        resize: As for `load_weights`.
        mean_std: As for `load_weights`.
        grid: As for `load_weights`.
        num_heads: Number of heads, if neither sizes nor config.json determine it.
        include_top: Whether the model ends with the head. If False it returns the features.
        dtype: Keras dtype or policy of the layers.
        name: Name of the model.
        **fields: Further fields of `ViTConfig`, such as `dropout_rate`, `stochastic_depth_rate` or
            `remat`.
    Raises:
        InputError: (a ValueError) As `load_weights`.
    """
    check_resize(resize or RESIZES[0])
    with open_weights(path) as (kind, content, metadata):
        if kind == "model":
            _refuse_for_saved_models(mean_std=mean_std, grid=grid, num_heads=num_heads)
            unchanged = num_classes is image_size is dtype is name is None and include_top
            if unchanged and not fields:
                return content
            spec, source = PretrainedSpec(model_config(content)), WeightSource.from_model(content)
        else:
            hints = {"grid": {"given": grid}, "num_heads": {"given": num_heads}}
            spec, source = _open_source(kind, content, metadata, hints, mean_std)
        config = _derive(spec.config, num_classes, image_size, include_top, fields)
        model = _build(config, dtype, name)
        with_head = num_classes is None and config.num_classes is not None
        _fill(model, spec, source, resize, path, with_head)
    return model


def read_config(path: epath.PathLike) -> ViTConfig | ResNetConfig:
    """Returns the architecture of the weights at a path, without loading them.

    Raises:
        InputError: (a ValueError) As `from_pretrained`.
    """
    saved = _saved_config(epath.Path(check_path(path)))
    if saved is not None:
        return saved
    with open_weights(path) as (kind, content, metadata):
        if kind == "model":
            return model_config(content)
        with parsing(content.path):
            return kind.read_spec(content, metadata, {}).config


def _saved_config(path):
    """Returns the config in a .keras file or run directory; None for anything else."""
    path = path / "best.keras" if (path / "class_names.json").exists() else path
    if path.suffix != ".keras" or not path.exists():
        return None
    with local_copy(path) as local:
        return read_keras_config(local)


def _derive(config, num_classes, image_size, include_top, fields):
    """Returns the config of a new model from that of a file."""
    changes = dict(fields)
    unknown = [name for name in changes if not hasattr(config, name)]
    if unknown:
        names = ", ".join(field.name for field in dataclasses.fields(config))
        raise InputError(
            f"Further arguments must be fields of {type(config).__name__}: {names}. "
            f"Received: {', '.join(unknown)}."
        )
    if image_size is not None:
        changes["image_size"] = image_size
    if num_classes is not None:
        changes["num_classes"] = num_classes
        if isinstance(config, ViTConfig):  # pre_logits belongs to the task of the file
            changes.setdefault("pre_logits", False)
    if not include_top:
        changes["num_classes"] = None
    return dataclasses.replace(config, **changes)


def _build(config, dtype, name):
    """Builds the model of a config, whose stem or stages must be those of a known variant."""
    if isinstance(config, ViTConfig):
        stems = {(units, patch_size) for _, units, patch_size in HYBRIDS.values()}
        if config.stem_units is not None and (config.stem_units, config.patch_size) not in stems:
            raise InputError(
                f"A hybrid must have the stem of one of {', '.join(HYBRIDS)}. "
                f"Received: stem_units={config.stem_units}, patch_size={config.patch_size}."
            )
    elif config.variant is None:
        raise InputError(
            f"A BiT ResNet must be one of {', '.join(RESNETS)}. "
            f"Received: num_units={config.num_units}, width_factor={config.width_factor}."
        )
    return build_model(config, dtype, name)


def _refuse_for_saved_models(**arguments):
    """Refuses arguments that describe files of other projects."""
    for name, value in arguments.items():
        if value is not None:
            raise InputError(
                f"`{name}` is only for weight files of other projects; a model that was saved by "
                f"this package includes it. Received: {name}={value!r}."
            )


def _open_source(format, arrays, metadata, hints, mean_std):
    """Returns the spec of an array file, and its weights as a source that reads lazily."""
    with parsing(arrays.path):
        spec = format.read_spec(arrays, metadata, hints)
        mappings = format.weight_map(spec)
    names = {}
    used, problems = set(), []
    for mapping in mappings:
        for name, shape in zip(mapping.names, mapping.expected_shapes, strict=True):
            used.add(name)
            actual = arrays.shapes.get(name)
            if actual is None:
                problems.append(f"{name} {shape}: missing")
            elif actual != shape and actual != (1, 1, 1, *shape):  # GroupNorms of some hybrids
                problems.append(f"{name}: {actual}, expected {shape}")
        names[mapping.path] = mapping.names[0] + (", ..." if len(mapping.names) > 1 else "")
    problems += [
        f"{name} {arrays.shapes[name]}: unknown"
        for name in arrays.shapes
        if name not in used and not any(re.fullmatch(each, name) for each in format.OPTIONAL)
    ]
    if problems:
        raise InputError(
            f"A file of the format {format.NAME} must hold exactly the arrays of its model. "
            f"Received: {arrays.path}, with {len(problems)} differences: {'; '.join(problems[:5])}"
            + ("; ..." if len(problems) > 5 else ".")
        )
    weights = {mapping.path: _LazyWeight(mapping, arrays) for mapping in mappings}
    mean_std = spec.mean_std if mean_std is None else mean_std
    if mean_std != INCEPTION_MEAN_STD:
        _fold_normalization(weights, mean_std, arrays.path)
    return spec, WeightSource(weights, spec.config, names)


class _LazyWeight:
    """A weight that is read from its file when NumPy converts it to an array.

    Args:
        mapping: The `WeightMapping` of the weight.
        arrays: The open file.
        transform: Function that is applied to the weight after reading.
    """

    def __init__(self, mapping: WeightMapping, arrays, transform=None):
        self.mapping, self.arrays, self.transform = mapping, arrays, transform
        self.shape = tuple(mapping.weight_shape)

    def __array__(self, dtype=None, copy=None):
        value = self.mapping.read([self.arrays.read(name) for name in self.mapping.names])
        value = value if self.transform is None else self.transform(value)
        return value if dtype is None else value.astype(dtype)


def _fold_normalization(weights, mean_std, path):
    """Changes the patch projection to take images in [-1, 1] instead of normalized ones."""
    try:
        mean, std = (np.array(part, "float64").reshape(3) for part in mean_std)
        valid = bool((std > 0).all() and np.isfinite(mean).all())
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise InputError(
            "`mean_std` must be three means and three positive standard deviations, such as "
            f"`vitkeras.pretrained.IMAGENET_MEAN_STD`. Received: mean_std={mean_std!r} for {path}."
        )
    kernel, bias = weights[PATCH_KERNEL], weights[PATCH_BIAS]

    def by_channel(value):
        return np.asarray(value, "float64").reshape(-1, 3, value.shape[1])  # (p*p, 3, d)

    def scale_kernel(value):
        return (by_channel(value) * (0.5 / std)[:, None]).reshape(value.shape).astype("float32")

    def shift_bias(value):
        shift = np.einsum("c,pcd->d", (0.5 - mean) / std, by_channel(np.asarray(kernel)))
        return (value + shift).astype("float32")

    weights[PATCH_KERNEL] = _LazyWeight(kernel.mapping, kernel.arrays, scale_kernel)
    weights[PATCH_BIAS] = _LazyWeight(bias.mapping, bias.arrays, shift_bias)


def _fill(model, spec, source, resize, path, with_head=None):
    """Checks the architecture, then copies the weights; returns the report."""
    target, config = model.config, spec.config
    notes = [*spec.warnings, *check_architecture(config, target, path)]
    if with_head is None:
        with_head = config.num_classes is not None and config.num_classes == target.num_classes
    if with_head and isinstance(target, ViTConfig):
        for field in ("classifier", "pre_logits"):
            expected, actual = getattr(target, field), getattr(config, field)
            if expected != actual:
                raise InputError(
                    f"`{field}` of the model must be that of the weights, or pass `head=False`. "
                    f"Received: {field}={expected!r}, {path} has {actual!r}."
                )
    report = copy_weights(source, model, resize or spec.position_resize, with_head)
    if with_head and not np.any(model.get_layer("head").kernel):
        notes.append(
            f"The head of {path} is all zeros, as in files pretrained on ImageNet-21k: all logits "
            "are equal until it is fine-tuned."
        )
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return report
