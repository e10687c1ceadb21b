"""`transfer_weights(source, target)`: starts a model from another one that was trained before."""

import numpy as np

from vitkeras.errors import InputError
from vitkeras.positions import resize_matrix, resize_patches, resize_positions

POSITIONS = "patch_encoder/positions/embedding"
LINES = ("patch_encoder/positions/rows", "patch_encoder/positions/columns")
PROJECTION = "patch_encoder/projection/kernel"


def transfer_weights(source, target, resize="zoom"):
    """Copies all weights but the head's, and resizes what belongs to places in the image.

    That is the position embedding where the grids differ, and the patch projection where the patch
    sizes do.

    Nothing is copied unless everything fits. The head of `target` stays as it is (zeros, when
    fresh), since a new task gets a new head.

    Args:
        source: A model made by `vit`.
        target: A model made by `vit` with the same sizes; the image size, the patch size and the
            number of classes may differ. Changed in place.
        resize: How positions are resized, one of `positions.RESIZES`; what the weights' origin
            uses reproduces its numbers.
    Returns:
        A report: `{"copied": [...], "resized": [...], "fresh": [...], "unused": [...]}`, each a
        list of weight paths.
    Raises:
        InputError: (a ValueError) If a weight of `target` has no counterpart of its shape.
    """
    old = {weight.path: weight for weight in source.weights}
    report = {"copied": [], "resized": [], "fresh": [], "unused": []}
    values, problems = [], []
    for weight in target.weights:
        path = weight.path
        if path.startswith("head/"):
            report["fresh"].append(path)
        elif path not in old:
            problems.append(f"{path}: missing in the source")
        elif tuple(old[path].shape) == tuple(weight.shape) and not _moved(source, target, path):
            values.append((weight, old[path]))
            report["copied"].append(path)
        else:
            resized = _resized(source, target, path, old[path], resize)
            if resized is None or resized.shape != tuple(weight.shape):
                problems.append(f"{path}: {tuple(old[path].shape)} against {tuple(weight.shape)}")
            else:
                values.append((weight, resized))
                report["resized"].append(path)
    if problems:
        raise InputError(
            "The two models must have the same sizes and kind of classifier. Received: "
            f"{len(problems)} weights that do not fit (source against target): "
            + "; ".join(problems[:5])
            + ("; ..." if len(problems) > 5 else ".")
        )
    used = set(report["copied"] + report["resized"])
    report["unused"] = sorted(set(old) - used)
    for weight, value in values:
        weight.assign(value)
    return report


def _moved(source, target, path):
    """Whether this is a position embedding whose grid differs, even if its length does not."""
    return path == POSITIONS and (
        source.get_layer("patch_encoder").grid != target.get_layer("patch_encoder").grid
    )


def _resized(source, target, path, value, resize):
    """Returns what belongs to places in the image, resized; None for anything else."""
    if path == POSITIONS:
        here, there = source.get_layer("patch_encoder"), target.get_layer("patch_encoder")
        if here.class_token == there.class_token:
            return resize_positions(value, here.grid, there.grid, int(here.class_token), resize)
    if path in LINES:
        axis = LINES.index(path)
        old, new = (m.get_layer("patch_encoder").grid[axis] for m in (source, target))
        return resize_matrix(old, new, resize) @ np.asarray(value)
    if path == PROJECTION:
        old, new = (model.get_layer("patches").patch_size for model in (source, target))
        kernel = np.asarray(value).reshape(old, old, -1, value.shape[1])
        return resize_patches(kernel, new).reshape(-1, value.shape[1])
    return None
