"""big_vision's .npz files: class token, mean or attention pooling; learned or fixed positions.

Source: https://github.com/google-research/big_vision, models/vit.py.
"""

import numpy as np

from vitkeras.weights import flax
from vitkeras.weights.rules import Rule, VitFacts, grid_of, shape_of

NAME = "big_vision .npz"
PREFIXES = ("params/", "opt/target/", "")
#: Arrays that a file may have and a model not: the optimizer's.
SPARE = (r"opt/(?!target/).*", r"extra/.*")


def _prefix(shapes):
    return next((p for p in PREFIXES if f"{p}embedding/kernel" in shapes), None)


def matches(shapes):
    """Whether these are the names of such a file."""
    prefix = _prefix(shapes)
    return (
        prefix is not None
        and f"{prefix}Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
        in shapes
        and f"{prefix}Transformer/posembed_input/pos_embedding" not in shapes
    )


def facts(arrays, config, hint):
    """Returns the `VitFacts` of a file."""
    shapes, prefix = arrays.shapes, _prefix(arrays.shapes)
    learned = f"{prefix}pos_embedding" in shapes
    if learned:
        places = shape_of(arrays, f"{prefix}pos_embedding", 3)[1]
        grid = grid_of(places, arrays.path, **hint.get("grid", {}))
    else:  # fixed ones suit any grid
        said = hint.get("grid", {})
        grid = tuple(said.get("given") or said.get("otherwise") or (14, 14))
    if f"{prefix}MAPHead_0/probe" in shapes:
        classifier = "map"
    else:
        classifier = "token" if f"{prefix}cls" in shapes else "gap"
    return VitFacts(
        **flax.block_facts(arrays, prefix),
        **flax.top_facts(arrays, prefix),
        patch_size=shape_of(arrays, f"{prefix}embedding/kernel", 4)[0],
        grid=grid,
        classifier=classifier,
        positions="learned" if learned else "sincos_2d",
    )


def rules(facts):
    """Returns the rules for a model of these facts."""
    prefix, d = facts.style[0], facts.hidden_dim
    found = [*flax.projection(facts, prefix), *flax.encoder(facts), *flax.top(facts, prefix)]
    if facts.positions == "learned":
        places = facts.grid[0] * facts.grid[1]
        path, name = "patch_encoder/positions/embedding", f"{prefix}pos_embedding"
        if facts.class_token:  # it is put in front after the positions are added
            found.append(
                Rule(path, (name,), (1, places, d), (1, places + 1, d), combine=_with_class)
            )
        else:
            found.append(Rule(path, (name,), (1, places, d)))
    if facts.class_token:
        found.append(Rule("patch_encoder/class_token", (f"{prefix}cls",), (1, 1, d)))
    if facts.classifier == "map":
        found += _map_head(facts, f"{prefix}MAPHead_0")
    return found


def _with_class(places):
    return np.concatenate([np.zeros_like(places[:, :1]), places], axis=1)


def _map_head(facts, name):
    """Returns the rules of attention pooling."""
    d, f, k = facts.hidden_dim, facts.mlp_dim, facts.num_heads
    attention = f"{name}/MultiHeadDotProductAttention_0"
    found = [Rule("map_head/probe", (f"{name}/probe",), (1, 1, d))]
    for part in ("query", "key", "value"):
        found += [
            Rule(f"map_head/attention/{part}/kernel", (f"{attention}/{part}/kernel",),
                 (d, k, d // k)),
            Rule(f"map_head/attention/{part}/bias", (f"{attention}/{part}/bias",), (k, d // k)),
        ]  # fmt: skip
    out = "map_head/attention/attention_output"
    return [
        *found,
        Rule(f"{out}/kernel", (f"{attention}/out/kernel",), (k, d // k, d)),
        Rule(f"{out}/bias", (f"{attention}/out/bias",), (d,)),
        *flax.flax_norm("map_head/norm", f"{name}/LayerNorm_0", d),
        *flax.dense("map_head/mlp_in", f"{name}/MlpBlock_0/Dense_0", d, f),
        *flax.dense("map_head/mlp_out", f"{name}/MlpBlock_0/Dense_1", f, d),
    ]
