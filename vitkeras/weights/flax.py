"""Names and shapes that two Flax code bases share: Google's vision_transformer and big_vision."""

from vitkeras.weights.rules import Rule, count, norm, shape_of

#: How modules of a block are numbered: in the order of the block, as in the published files, or
#: for each class alone, as the authors' current code and big_vision do.
IN_ORDER = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
BY_CLASS = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


def block_facts(arrays, prefix=""):
    """Returns sizes and `style` (prefix and numbering) of the encoder in a file."""
    block = prefix + "Transformer/encoderblock_{}"
    style = IN_ORDER if f"{block.format(0)}/LayerNorm_2/scale" in arrays.shapes else BY_CLASS
    query = shape_of(arrays, f"{block.format(0)}/{style[1]}/query/kernel", 3)
    mlp = shape_of(arrays, f"{block.format(0)}/{style[3]}/Dense_0/kernel", 2)
    return {
        "hidden_dim": query[0],
        "num_heads": query[1],
        "mlp_dim": mlp[1],
        "num_layers": count(arrays.shapes, block + "/LayerNorm_0/scale"),
        "style": (prefix, style),
    }


def dense(path, name, inputs, outputs):
    """Returns the rules of a dense layer, (in, out)."""
    return [
        Rule(f"{path}/kernel", (f"{name}/kernel",), (inputs, outputs)),
        Rule(f"{path}/bias", (f"{name}/bias",), (outputs,)),
    ]


def flax_norm(path, name, width):
    """Returns the rules of a LayerNorm or GroupNorm."""
    return norm(path, f"{name}/scale", f"{name}/bias", width)


def projection(facts, prefix=""):
    """Returns the rules of the patch projection."""
    p, c, d = facts.patch_size, facts.channels, facts.hidden_dim
    return [
        Rule(
            "patch_encoder/projection/kernel",
            (f"{prefix}embedding/kernel",),
            (p, p, c, d),
            shape=(p * p * c, d),
        ),
        Rule("patch_encoder/projection/bias", (f"{prefix}embedding/bias",), (d,)),
    ]


def encoder(facts):
    """Returns the rules of all blocks and the last LayerNorm."""
    prefix, (norm_1, attention, norm_2, mlp) = facts.style
    d, f, k = facts.hidden_dim, facts.mlp_dim, facts.num_heads
    rules = []
    for i in range(facts.num_layers):
        ours, theirs = f"block_{i:02d}", f"{prefix}Transformer/encoderblock_{i}"
        parts = [f"{theirs}/{attention}/{part}" for part in ("query", "key", "value")]
        kernels, biases = (tuple(f"{p}/{end}" for p in parts) for end in ("kernel", "bias"))
        out = f"{theirs}/{attention}/out"
        rules += [
            *flax_norm(f"{ours}/attention_norm", f"{theirs}/{norm_1}", d),
            Rule(f"{ours}/attention/qkv/kernel", kernels, (d, k, d // k), shape=(d, d)),
            Rule(f"{ours}/attention/qkv/bias", biases, (k, d // k), shape=(d,)),
            Rule(f"{ours}/attention/out/kernel", (f"{out}/kernel",), (k, d // k, d), shape=(d, d)),
            Rule(f"{ours}/attention/out/bias", (f"{out}/bias",), (d,)),
            *flax_norm(f"{ours}/mlp_norm", f"{theirs}/{norm_2}", d),
            *dense(f"{ours}/mlp_in", f"{theirs}/{mlp}/Dense_0", d, f),
            *dense(f"{ours}/mlp_out", f"{theirs}/{mlp}/Dense_1", f, d),
        ]
    return rules + flax_norm("norm", f"{prefix}Transformer/encoder_norm", d)


def top(facts, prefix=""):
    """Returns the rules of pre_logits and head."""
    d, rules = facts.hidden_dim, []
    if facts.pre_logits:
        rules += dense("pre_logits", f"{prefix}pre_logits", d, d)
    if facts.num_classes is not None:
        rules += dense("head", f"{prefix}head", d, facts.num_classes)
    return rules


def top_facts(arrays, prefix=""):
    """Returns what a file tells of pre_logits and head."""
    head = f"{prefix}head/kernel"
    return {
        "pre_logits": f"{prefix}pre_logits/kernel" in arrays.shapes,
        "num_classes": shape_of(arrays, head, 2)[1] if head in arrays.shapes else None,
    }
