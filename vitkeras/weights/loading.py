"""From a file to a model: `load_weights` into one there is, `from_pretrained` into a new one."""

import re
import warnings

import numpy as np

from vitkeras.errors import InputError
from vitkeras.positions import RESIZES, check_resize
from vitkeras.transfer import PROJECTION, Source, compare_numerics, copy_weights
from vitkeras.weights import bit
from vitkeras.weights.files import open_weights
from vitkeras.weights.rules import HALF, VitFacts, encoder_facts, is_vit

BIAS = PROJECTION.replace("kernel", "bias")


def load_weights(model, path, *, head=True, resize=None, mean_std=None, grid=None):
    """Loads weights from a file of any known format, found out by its content.

    Positions and patch projection are resized where the model's differ. The head is loaded if it
    has the same number of classes, else left as it is. The model takes images in [-1, 1]
    afterwards: weights that were trained with other means and deviations get these folded into
    the patch projection.

    Args:
        model: A model made by `vit` or `resnet`, of the file's sizes. Changed in place.
        path: A Google (ViT, AugReg, hybrid), big_vision or BiT .npz; a Hugging Face (ViT, DINOv2)
            or timm .safetensors, or the folder with it; a run directory; a .keras file. On a disk
            or in an object store.
        head: False to leave the head as it is in any case.
        resize: How positions are resized, one of `positions.RESIZES`; None for the convention of
            the file's origin.
        mean_std: Means and deviations of red, green and blue that pixels in [0, 1] were normalised
            with in the weights' training, such as `vitkeras.weights.IMAGENET`. None for what the
            files beside it say, or else its format (DINOv2: ImageNet's; others: 0.5 and 0.5).
        grid: `(rows, columns)` of the file's positions, where they are not those of a square.
    Returns:
        A `Report` of what was copied, resized, left fresh and unused; `print` shows a few lines.
    Warns:
        If the weights were trained with another GELU or epsilon than the model has, or the head
        is all zeros.
    Raises:
        InputError: (a ValueError) If the file is of no known format, damaged, or of another model;
            nothing is loaded then.
    """
    check_resize(resize or RESIZES[0])
    with open_weights(path) as (kind, content, config):
        if kind == "model":
            _only_for_files(mean_std=mean_std, grid=grid)
            facts = _model_facts(content)
            source = Source.of(content)
        else:
            hint = {}
            if is_vit(model):
                mine = _model_facts(model)
                hint = {
                    "grid": {"given": grid, "otherwise": mine.grid},
                    "heads": {"otherwise": mine.num_heads},
                }
            facts, source = _source(kind, content, config, hint, mean_std)
        return _fill(model, facts, source, resize, path, None if head else False)


def from_pretrained(
    path,
    num_classes=None,
    image_size=None,
    *,
    resize=None,
    mean_std=None,
    grid=None,
    num_heads=None,
    **options,
):
    """Builds the model that a weight file is of, and loads it.

    Args:
        path: As for `load_weights`.
        num_classes: Width of a fresh head (zeros), without what belonged to the old one; None for
            the head of the file, or features if it has none.
        image_size: Side in pixels, or (height, width); None for that of the file.
        resize, mean_std, grid: As for `load_weights`.
        num_heads: Number of heads, where neither the sizes nor a config.json beside the file tell.
        **options: Further arguments of `vit` (of `resnet`, for such a file): `dropout_rate`,
            `stochastic_depth_rate`, `dtype`, `name`, ...
    Returns:
        The model.
    Raises:
        InputError: (a ValueError) As `load_weights`.
    """
    check_resize(resize or RESIZES[0])
    with open_weights(path) as (kind, content, config):
        if kind == "model":
            _only_for_files(mean_std=mean_std, grid=grid, num_heads=num_heads)
            if num_classes is None and image_size is None and not options:
                return content
            facts, source = _model_facts(content), Source.of(content)
        else:
            hint = {"grid": {"given": grid}, "heads": {"given": num_heads}}
            facts, source = _source(kind, content, config, hint, mean_std)
        model = facts.build(num_classes, image_size, **options)
        with_head = (
            num_classes is None
            and facts.num_classes is not None
            and options.get("include_top", True)
        )
        _fill(model, facts, source, resize, path, with_head)
    return model


def _only_for_files(**given):
    """Refuses what a saved model knows by itself."""
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"`{name}` is for files of others; a model that was saved here knows its own. "
                f"Received: {name}={value!r}."
            )


def _model_facts(model):
    return encoder_facts(model) if is_vit(model) else bit.model_facts(model)


def _source(format, arrays, config, hint, mean_std):
    """Returns the facts of an array file, and its weights as a `Source` that reads when asked."""
    facts = format.facts(arrays, config, hint)
    rules, names = format.rules(facts), {}
    used, problems = set(), []
    for rule in rules:
        for name, shape in zip(rule.names, rule.expected, strict=True):
            used.add(name)
            there = arrays.shapes.get(name)
            if there is None:
                problems.append(f"{name} {shape}: missing")
            elif there != shape and there != (1, 1, 1, *shape):  # some GroupNorms are
                problems.append(f"{name}: {there}, where {shape} belongs")
        names[rule.path] = rule.names[0] + (", ..." if len(rule.names) > 1 else "")
    problems += [
        f"{name} {arrays.shapes[name]}: unknown"
        for name in arrays.shapes
        if name not in used and not any(re.fullmatch(spare, name) for spare in format.SPARE)
    ]
    if problems:
        raise InputError(
            f"A file of the format {format.NAME} must hold the arrays of its model and no others. "
            f"Received: {arrays.path}, with {len(problems)} that do not suit: "
            + "; ".join(problems[:5])
            + ("; ..." if len(problems) > 5 else ".")
        )
    weights = {rule.path: _Lazy(rule, arrays) for rule in rules}
    if mean_std is None:
        mean_std = getattr(facts, "mean_std", HALF)
    if mean_std != HALF:
        _fold(weights, mean_std)
    vit = hasattr(facts, "grid")
    places = (facts.grid, facts.patch_size, facts.class_token) if vit else (None, None, False)
    return facts, Source(weights, *places, names)


class _Lazy:
    """A weight that is read from its file when NumPy asks for it.

    Args:
        rule: The `Rule` that makes it.
        arrays: The open file.
        then: What is done to it afterwards.
    """

    def __init__(self, rule, arrays, then=None):
        self.rule, self.arrays, self.then = rule, arrays, then
        self.shape = tuple(rule.weight_shape)

    def __array__(self, dtype=None, copy=None):
        value = self.rule.read([self.arrays.read(name) for name in self.rule.names])
        value = value if self.then is None else self.then(value)
        return value if dtype is None else value.astype(dtype)


def _fold(weights, mean_std):
    """Has the patch projection take images in [-1, 1] in place of images normalised so."""
    try:
        mean, std = (np.array(part, "float64").reshape(3) for part in mean_std)
        sound = bool((std > 0).all() and np.isfinite(mean).all())
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise InputError(
            "`mean_std` must be three means and three positive deviations, such as "
            f"`vitkeras.weights.IMAGENET`. Received: mean_std={mean_std!r}."
        )
    kernel, bias = weights[PROJECTION], weights[BIAS]

    def by_colour(value):
        return np.asarray(value, "float64").reshape(-1, 3, value.shape[1])  # (p*p, 3, d)

    def scaled(value):
        return (by_colour(value) * (0.5 / std)[:, None]).reshape(value.shape).astype("float32")

    def shifted(value):
        moved = np.einsum("c,pcd->d", (0.5 - mean) / std, by_colour(np.asarray(kernel)))
        return (value + moved).astype("float32")

    weights[PROJECTION] = _Lazy(kernel.rule, kernel.arrays, scaled)
    weights[BIAS] = _Lazy(bias.rule, bias.arrays, shifted)


def _fill(model, facts, source, resize, path, with_head=None):
    """Compares facts, then copies the weights; returns the report."""
    mine = _model_facts(model)
    if type(mine) is not type(facts):
        kinds = [type(each).__name__.removesuffix("Facts") for each in (facts, mine)]
        raise InputError(
            f"The file must be of the model's kind. Received: {path}, of a {kinds[0]}, and "
            f"{model.name}, a {kinds[1]}."
        )

    def both(field):
        return getattr(mine, field, None), getattr(facts, field, None)

    if with_head is None:
        with_head = facts.num_classes is not None and facts.num_classes == mine.num_classes
    for field in ("classifier", "pre_logits") if with_head else ():
        here, there = both(field)
        if here != there:
            raise InputError(
                f"`{field}` of the model must be that of the file. "
                f"Received: {field}={here!r}, {path} has {there!r}."
            )
    notes = list(getattr(facts, "notes", ()))
    if isinstance(facts, VitFacts):
        notes += compare_numerics(facts, mine, path)
    report = copy_weights(source, model, resize or facts.resize, with_head)
    if with_head and not np.any(model.get_layer("head").kernel):
        notes.append(
            f"The head of {path} is all zeros, as in the files pretrained on ImageNet-21k, so all "
            "logits are equal: it is there to be fine-tuned."
        )
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return report
