"""Google's .npz files: ViT, AugReg, SAM and hybrids, as the vit_models bucket has them.

Source: https://github.com/google-research/vision_transformer.
"""

import dataclasses

from vitkeras.errors import InputError
from vitkeras.weights import flax
from vitkeras.weights.rules import Rule, VitFacts, count, grid_of, shape_of

NAME = "Google .npz"
POSITIONS = "Transformer/posembed_input/pos_embedding"
#: Arrays that a file may have and a model not.
SPARE = ()


def matches(shapes):
    """Whether these are the names of such a file."""
    return POSITIONS in shapes and "embedding/kernel" in shapes


def facts(arrays, config, hint):
    """Returns the `VitFacts` of a file."""
    shapes = arrays.shapes
    patch_size, _, _, d = shape_of(arrays, "embedding/kernel", 4)
    places = shape_of(arrays, POSITIONS, 3)[1]
    class_token = "cls" in shapes
    num_units = None
    if "conv_root/kernel" in shapes:
        stages = count(shapes, "block{0}/unit1/conv1/kernel", 1)
        num_units = tuple(
            count(shapes, f"block{s + 1}/unit{{}}/conv1/kernel", 1) for s in range(stages)
        )
    found = flax.block_facts(arrays)
    return VitFacts(
        **found,
        **flax.top_facts(arrays),
        patch_size=patch_size,
        grid=grid_of(places - class_token, arrays.path, **hint.get("grid", {})),
        num_units=num_units,
        classifier="token" if class_token else "gap",
    )


def rules(facts):
    """Returns the rules for a model of these facts."""
    d = facts.hidden_dim
    places = facts.grid[0] * facts.grid[1] + facts.class_token
    found = [
        *flax.projection(facts),
        Rule("patch_encoder/positions/embedding", (POSITIONS,), (1, places, d)),
        *flax.encoder(facts),
        *flax.top(facts),
    ]
    if facts.class_token:
        found.append(Rule("patch_encoder/class_token", ("cls",), (1, 1, d)))
    if facts.num_units is not None:
        found += _stem(facts.num_units)
    return found


def _stem(num_units):
    """Returns the rules of a hybrid's ResNet."""
    found = [
        Rule("stem/root/kernel", ("conv_root/kernel",), (7, 7, 3, 64)),
        *flax.flax_norm("stem/root_norm", "gn_root", 64),
    ]
    channels = 64
    for stage, units in enumerate(num_units, 1):
        width = 64 * 2 ** (stage - 1)
        for unit in range(1, units + 1):
            ours, theirs = f"stem/stage{stage}_unit{unit}", f"block{stage}/unit{unit}"
            convolutions = [
                ("1", 1, channels, width), ("2", 3, width, width), ("3", 1, width, 4 * width),
            ]  # fmt: skip
            if unit == 1:  # each stage changes the width
                convolutions.append(("_proj", 1, channels, 4 * width))
            for number, side, inputs, outputs in convolutions:
                shape = (side, side, inputs, outputs)
                found += [
                    Rule(f"{ours}/conv{number}/kernel", (f"{theirs}/conv{number}/kernel",), shape),
                    *flax.flax_norm(f"{ours}/norm{number}", f"{theirs}/gn{number}", outputs),
                ]
            channels = 4 * width
    return found


def named(facts):
    """Returns the facts with the names of the published files."""
    return dataclasses.replace(facts, style=("", flax.IN_ORDER))


def check_writable(facts):
    """Checks that the authors' code has such a model.

    Raises:
        InputError: If not.
    """
    wrong = [
        text
        for bad, text in (
            (facts.classifier not in ("token", "gap"), f"classifier={facts.classifier!r}"),
            (facts.positions != "learned", f"positions={facts.positions!r}"),
            (facts.positions_at != "input", f"positions_at={facts.positions_at!r}"),
            (facts.num_registers, f"num_registers={facts.num_registers}"),
            (facts.layer_scale, "LayerScale"),
            (facts.gelu != "tanh", f"gelu={facts.gelu!r}"),
            (facts.epsilon != 1e-6, f"epsilon={facts.epsilon}"),
        )
        if bad
    ]
    if wrong:
        raise InputError(
            "A Google .npz file is of a ViT or hybrid with a class token or mean pooling, learned "
            "positions, tanh GELU and epsilon 1e-6. Received: a model with "
            f"{', '.join(wrong)}. Keep it with `model.save`."
        )
