"""Names and shapes common to Google's vision_transformer and big_vision, both written in Flax."""

from vitkeras.models.config import ViTConfig
from vitkeras.pretrained.mapping import (
    PATCH_BIAS,
    PATCH_KERNEL,
    PretrainedSpec,
    WeightMapping,
    count_names,
    norm,
    require_shape,
)

#: Numbering of the modules in a block: by position in the block, as in the published files, or by
#: class, as in the authors' current code and big_vision.
BY_POSITION = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
BY_CLASS = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


def encoder_sizes(arrays, prefix=""):
    """Returns the encoder sizes as fields of `ViTConfig`, and the numbering of its modules."""
    block = prefix + "Transformer/encoderblock_{}"
    by_position = f"{block.format(0)}/LayerNorm_2/scale" in arrays.shapes
    numbering = BY_POSITION if by_position else BY_CLASS
    query = require_shape(arrays, f"{block.format(0)}/{numbering[1]}/query/kernel", 3)
    mlp = require_shape(arrays, f"{block.format(0)}/{numbering[3]}/Dense_0/kernel", 2)
    sizes = {
        "hidden_dim": query[0],
        "num_heads": query[1],
        "mlp_dim": mlp[1],
        "num_layers": count_names(arrays.shapes, block + "/LayerNorm_0/scale"),
    }
    return sizes, numbering


def head_fields(arrays, prefix=""):
    """Returns the fields of `ViTConfig` that describe pre_logits and head."""
    head = f"{prefix}head/kernel"
    return {
        "pre_logits": f"{prefix}pre_logits/kernel" in arrays.shapes,
        "num_classes": require_shape(arrays, head, 2)[1] if head in arrays.shapes else None,
    }


def dense(path, name, inputs, outputs):
    """Returns the mappings of a dense layer, stored as (in, out)."""
    return [
        WeightMapping(f"{path}/kernel", (f"{name}/kernel",), (inputs, outputs)),
        WeightMapping(f"{path}/bias", (f"{name}/bias",), (outputs,)),
    ]


def flax_norm(path, name, width):
    """Returns the mappings of a LayerNorm or GroupNorm."""
    return norm(path, f"{name}/scale", f"{name}/bias", width)


def projection(config: ViTConfig, prefix=""):
    """Returns the mappings of the patch projection, stored as a convolution (p, p, c, d)."""
    p, c, d = config.patch_size, config.projected_channels, config.hidden_dim
    kernel, bias = f"{prefix}embedding/kernel", f"{prefix}embedding/bias"
    return [
        WeightMapping(PATCH_KERNEL, (kernel,), (p, p, c, d), shape=(p * p * c, d)),
        WeightMapping(PATCH_BIAS, (bias,), (d,)),
    ]


def encoder(spec: PretrainedSpec):
    """Returns the mappings of all blocks and the last LayerNorm. `naming` is prefix, numbering."""
    config, (prefix, (norm_1, attention, norm_2, mlp)) = spec.vit_config, spec.naming
    d, f, k = config.hidden_dim, config.mlp_dim, config.num_heads
    mappings = []
    for i in range(config.num_layers):
        path, name = f"block_{i:02d}", f"{prefix}Transformer/encoderblock_{i}"
        parts = [f"{name}/{attention}/{part}" for part in ("query", "key", "value")]
        kernels, biases = (tuple(f"{p}/{end}" for p in parts) for end in ("kernel", "bias"))
        out, out_shape = f"{name}/{attention}/out", (k, d // k, d)
        mappings += [
            *flax_norm(f"{path}/attention_norm", f"{name}/{norm_1}", d),
            WeightMapping(f"{path}/attention/qkv/kernel", kernels, (d, k, d // k), shape=(d, d)),
            WeightMapping(f"{path}/attention/qkv/bias", biases, (k, d // k), shape=(d,)),
            WeightMapping(f"{path}/attention/out/kernel", (f"{out}/kernel",), out_shape, (d, d)),
            WeightMapping(f"{path}/attention/out/bias", (f"{out}/bias",), (d,)),
            *flax_norm(f"{path}/mlp_norm", f"{name}/{norm_2}", d),
            *dense(f"{path}/mlp_in", f"{name}/{mlp}/Dense_0", d, f),
            *dense(f"{path}/mlp_out", f"{name}/{mlp}/Dense_1", f, d),
        ]
    return mappings + flax_norm("norm", f"{prefix}Transformer/encoder_norm", d)


def head(config: ViTConfig, prefix=""):
    """Returns the mappings of pre_logits and head."""
    d, mappings = config.hidden_dim, []
    if config.pre_logits:
        mappings += dense("pre_logits", f"{prefix}pre_logits", d, d)
    if config.num_classes is not None:
        mappings += dense("head", f"{prefix}head", d, config.num_classes)
    return mappings
