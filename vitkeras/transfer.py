"""`transfer_weights(source, target)`: starts a model from another one that was trained before."""

from vitkeras.errors import InputError
from vitkeras.positions import resize_positions


def transfer_weights(source, target):
    """Copies all weights but the head's, and resizes the position embedding where grids differ.

    Nothing is copied unless everything fits. The head of `target` stays as it is (zeros, when
    fresh), since a new task gets a new head.

    Args:
        source: A model made by `vit`.
        target: A model made by `vit` with the same sizes and patch size; the image size and the
            number of classes may differ. Changed in place.
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
        elif path == "patch_encoder/position_embedding":
            here, there = source.get_layer("patch_encoder"), target.get_layer("patch_encoder")
            if here.hidden_dim != there.hidden_dim or here.class_token != there.class_token:
                problems.append(f"{path}: {tuple(old[path].shape)} against {tuple(weight.shape)}")
                continue
            resized = resize_positions(old[path], here.grid, there.grid, int(here.class_token))
            values.append((weight, resized))
            report["resized"].append(path)
        else:
            problems.append(f"{path}: {tuple(old[path].shape)} against {tuple(weight.shape)}")
    if problems:
        raise InputError(
            "The two models must have the same sizes, patch size and kind of classifier. Received: "
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
    return path == "patch_encoder/position_embedding" and (
        source.get_layer("patch_encoder").grid != target.get_layer("patch_encoder").grid
    )
