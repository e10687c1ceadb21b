"""`transfer_weights(source, target)`: starts a model from weights that were trained before."""

import re
import warnings
from typing import NamedTuple

import numpy as np

from vitkeras.errors import InputError
from vitkeras.positions import check_resize, resize_matrix, resize_patches, resize_positions

#: Of a `PositionEmbedding`: in the patch encoder, or before a block.
PLACED = re.compile(r"(?:patch_encoder/)?positions(?:_\d+)?/(embedding|rows|columns)")
PROJECTION = "patch_encoder/projection/kernel"
#: Layers that belong to the task that a model was trained for.
OF_TASK = ("pre_logits/", "head/")


class Source(NamedTuple):
    """Weights by the paths that they have in a model, and where the places are that they are for.

    Args:
        weights: From path to something with a `shape` that NumPy makes an array of.
        grid: `(rows, columns)` of the positions; None where there are none, as in a ResNet.
        patch_size: Side of a patch; None likewise.
        class_token: Whether the first position is that of one.
        names: What a weight is called where it comes from, if not by its path.
    """

    weights: dict
    grid: tuple | None
    patch_size: int | None
    class_token: bool
    names: dict

    @classmethod
    def of(cls, model):
        """Makes it of a model of this package."""
        weights = {weight.path: weight for weight in model.weights}
        return cls(weights, *_places(model), names={})


class Report(dict):
    """What became of each weight: lists of paths, by copied, resized, fresh and unused."""

    def __str__(self):
        """A few lines to read."""
        lines = [f"{len(self['copied'])} weights copied"]
        for what in ("resized", "fresh", "unused"):
            if self[what]:
                listed = ", ".join(self[what][:8]) + (", ..." if len(self[what]) > 8 else "")
                lines.append(f"{len(self[what])} {what}: {listed}")
        return "; ".join(lines)


def transfer_weights(source, target, resize="zoom"):
    """Copies all weights but the head's, and resizes what belongs to places in the image.

    That is the position embedding where the grids differ, and the patch projection where the patch
    sizes do.

    Nothing is copied unless everything fits. The head of `target` stays as it is (zeros, when
    fresh), since a new task gets a new head.

    Args:
        source: A model made by `vit` or `resnet`.
        target: Such a model with the same sizes; the image size, the patch size and the number of
            classes may differ. Changed in place.
        resize: How positions are resized, one of `positions.RESIZES`; what the weights' origin
            uses reproduces its numbers.
    Returns:
        A `Report`: `{"copied": [...], "resized": [...], "fresh": [...], "unused": [...]}`, each a
        list of weight paths; it prints as a few lines.
    Warns:
        If the two have another GELU or epsilon.
    Raises:
        InputError: (a ValueError) If the numbers of heads differ, a weight of `target` has no
            counterpart of its shape, or one of `source` besides those of its task has none.
    """
    check_resize(resize)
    blocks = [
        next((layer for layer in model.layers if layer.name == "block_00"), None)
        for model in (source, target)
    ]
    notes = compare_numerics(*blocks, source.name) if all(blocks) else ()
    report = copy_weights(Source.of(source), target, resize)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return report


def compare_numerics(there, here, origin):
    """Returns what to warn of where weights meet another arithmetic than they were trained with.

    Args:
        there, here: Anything with `num_heads`, `gelu` and `epsilon`.
        origin: What the weights are called, for the sentences.
    Raises:
        InputError: If the numbers of heads differ, which no shape shows.
    """
    if here.num_heads != there.num_heads:
        raise InputError(
            "`num_heads` of the model must be that of its weights. "
            f"Received: num_heads={here.num_heads}, {origin} has {there.num_heads}."
        )
    return [
        f"The weights of {origin} were trained with {field}={getattr(there, field)!r}, the model "
        f"has {getattr(here, field)!r}, so its outputs will differ: build it with "
        f"{field}={getattr(there, field)!r}, or use `from_pretrained`."
        for field in ("gelu", "epsilon")
        if getattr(here, field) != getattr(there, field)
    ]


def copy_weights(source, target, resize, with_head=False):
    """Does the work of `transfer_weights` from a `Source`; `with_head` copies the head, too."""
    grid, patch_size, _ = _places(target)
    report = Report(copied=[], resized=[], fresh=[], unused=[])
    values, problems = [], []

    def name(path):
        return f"{path} ({source.names[path]})" if path in source.names else path

    for weight in target.weights:
        path, shape = weight.path, tuple(weight.shape)
        if path.startswith("head/") and not with_head:
            report["fresh"].append(path)
        elif path not in source.weights:
            problems.append(f"{path}: missing in the source")
        else:
            old = source.weights[path]
            of_places = _is_of_places(path) and source.grid != grid
            if tuple(old.shape) == shape and not of_places:
                values.append((weight, old))
                report["copied"].append(path)
                continue
            resized = _resized(source, path, old, grid, patch_size, resize)
            if resized is None or resized.shape != shape:
                problems.append(f"{name(path)}: {tuple(old.shape)} against {shape}")
            else:
                values.append((weight, resized))
                report["resized"].append(path)
    used = {weight.path for weight, _ in values}
    report["unused"] = sorted(set(source.weights) - used)
    problems += [
        f"{name(path)}: {tuple(source.weights[path].shape)}, which the model does not have"
        for path in report["unused"]
        if not path.startswith(OF_TASK)
    ]
    if problems:
        raise InputError(
            "The two models must have the same sizes and kind of classifier. Received: "
            f"{len(problems)} weights that do not fit (source against target): "
            + "; ".join(problems[:5])
            + ("; ..." if len(problems) > 5 else ".")
        )
    # Read first: a damaged file must not leave a model half loaded.
    for weight, value in [(weight, np.asarray(value)) for weight, value in values]:
        weight.assign(value)
    return report


def _places(model):
    """Returns grid, patch size and whether there is a class token; of a ResNet, nothing."""
    if not any(layer.name == "patch_encoder" for layer in model.layers):
        return None, None, False
    encoder = model.get_layer("patch_encoder")
    return encoder.grid, model.get_layer("patches").patch_size, encoder.class_token


def _is_of_places(path):
    """Whether a weight belongs to a grid, so that an equal shape does not mean that it fits."""
    placed = PLACED.fullmatch(path)
    return path.endswith("/relative") or (placed is not None and placed[1] == "embedding")


def _resized(source, path, value, grid, patch_size, resize):
    """Returns what belongs to places in the image, resized; None for anything else."""
    placed = PLACED.fullmatch(path)
    if placed and placed[1] == "embedding":
        return resize_positions(value, source.grid, grid, int(source.class_token), resize)
    if placed:
        axis = ("rows", "columns").index(placed[1])
        return resize_matrix(source.grid[axis], grid[axis], resize) @ np.asarray(value)
    if path == PROJECTION and source.patch_size != patch_size:
        width, old = value.shape[1], source.patch_size
        kernel = np.asarray(value).reshape(old, old, -1, width)
        return resize_patches(kernel, patch_size).reshape(-1, width)
    return None
