"""Each weight format against a NumPy forward pass over the arrays as the file names them.

The names, shapes and order of operations here are written by hand after the code that the files
come from. Nothing is imported from `vitkeras.pretrained.formats`.
"""

import json
import math

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import vitkeras as vk

RNG = np.random.default_rng(5)
D, F, HEADS, LAYERS, P, CLASSES = 24, 40, 3, 2, 4, 5
ROWS, COLUMNS = 2, 3
IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
HALF = (np.full(3, 0.5), np.full(3, 0.5))


def normal(*shape):
    """Returns small random weights."""
    return RNG.normal(0, 0.3, shape).astype("float32")


def gain(size):
    """Returns random weights around 1."""
    return 1 + normal(size)


def layer_norm(x, scale, bias, epsilon):
    """Normalizes the last axis."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale + bias


def gelu_exact(x):
    """Computes GELU with the error function."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    """Computes GELU with the tanh approximation."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    """Computes softmax over the last axis."""
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attend(q, k, v):
    """Computes attention per head; q, k, v are (b, tokens, heads, head_dim)."""
    logits = np.einsum("bqhc,bkhc->bhqk", q, k) / math.sqrt(q.shape[-1])
    return np.einsum("bhqk,bkhc->bqhc", softmax(logits), v)


def conv(x, kernel, stride, padding):
    """Convolves (b, h, w, c) with (k, k, in, out); `padding` is (before, after) on both axes."""
    k = kernel.shape[0]
    x = np.pad(x, ((0, 0), padding, padding, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows[:, ::stride, ::stride], kernel)


def same(size, k, stride):
    """Returns TensorFlow's "SAME" padding of one axis."""
    total = max((math.ceil(size / stride) - 1) * stride + k - size, 0)
    return total // 2, total - total // 2


def max_pool(x, padding, fill):
    """Takes maxima over 3x3 windows of stride 2."""
    x = np.pad(x, ((0, 0), padding, padding, (0, 0)), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return windows[:, ::2, ::2].max((-1, -2))


def group_norm(x, scale, bias, epsilon):
    """Normalizes each of 32 groups of channels over height, width and group."""
    b, h, w, c = x.shape
    groups = x.reshape(b, h, w, 32, c // 32)
    groups = groups - groups.mean((1, 2, 4), keepdims=True)
    groups = groups / np.sqrt((groups**2).mean((1, 2, 4), keepdims=True) + epsilon)
    return groups.reshape(x.shape) * scale + bias


def images(size, count=2):
    """Returns random pixels of an image size."""
    return RNG.integers(0, 256, (count, *size, 3)).astype("float32")


def normalized(pixels, mean_std=HALF):
    """Normalizes pixels as the code that trained the weights does."""
    return (pixels / 255 - mean_std[0]) / mean_std[1]


def check(path, expected, size, tolerance=2e-5, **options):
    """Compares the model of a file with the expected output, a function of pixels."""
    pixels = images(size)
    model = vk.from_pretrained(path, **options)
    assert model.input_shape[1:3] == tuple(size)
    expected = expected(pixels)
    assert np.std(expected) > 0.05  # otherwise the comparison would be blind
    actual = keras.ops.convert_to_numpy(model(pixels))
    np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max())


# Flax: Google's vision_transformer and big_vision


def flax_block_arrays(name, numbering):
    """Returns the arrays of a block of Flax modules."""
    norm_1, attention, norm_2, mlp = numbering
    arrays = {}
    for norm in (norm_1, norm_2):
        arrays |= {f"{name}/{norm}/scale": gain(D), f"{name}/{norm}/bias": normal(D)}
    for part in ("query", "key", "value"):
        arrays[f"{name}/{attention}/{part}/kernel"] = normal(D, HEADS, D // HEADS)
        arrays[f"{name}/{attention}/{part}/bias"] = normal(HEADS, D // HEADS)
    arrays |= {
        f"{name}/{attention}/out/kernel": normal(HEADS, D // HEADS, D),
        f"{name}/{attention}/out/bias": normal(D),
        f"{name}/{mlp}/Dense_0/kernel": normal(D, F),
        f"{name}/{mlp}/Dense_0/bias": normal(F),
        f"{name}/{mlp}/Dense_1/kernel": normal(F, D),
        f"{name}/{mlp}/Dense_1/bias": normal(D),
    }
    return arrays


def flax_attention(a, name, queries, keys):
    """Applies flax.linen.MultiHeadDotProductAttention."""
    q, k, v = (
        np.einsum("btd,dhc->bthc", x, a[f"{name}/{part}/kernel"]) + a[f"{name}/{part}/bias"]
        for part, x in (("query", queries), ("key", keys), ("value", keys))
    )
    out = np.einsum("bthc,hcd->btd", attend(q, k, v), a[f"{name}/out/kernel"])
    return out + a[f"{name}/out/bias"]


def flax_norm(a, name, x):
    """Applies flax.linen.LayerNorm."""
    return layer_norm(x, a[f"{name}/scale"], a[f"{name}/bias"], 1e-6)


def flax_mlp(a, name, x):
    """Applies the MlpBlock, whose GELU is flax's: tanh."""
    x = gelu_tanh(x @ a[f"{name}/Dense_0/kernel"] + a[f"{name}/Dense_0/bias"])
    return x @ a[f"{name}/Dense_1/kernel"] + a[f"{name}/Dense_1/bias"]


def flax_encoder(a, prefix, numbering, x):
    """Applies the blocks and the last norm."""
    norm_1, attention, norm_2, mlp = numbering
    for i in range(LAYERS):
        block = f"{prefix}Transformer/encoderblock_{i}"
        y = flax_norm(a, f"{block}/{norm_1}", x)
        x = x + flax_attention(a, f"{block}/{attention}", y, y)
        x = x + flax_mlp(a, f"{block}/{mlp}", flax_norm(a, f"{block}/{norm_2}", x))
    return flax_norm(a, f"{prefix}Transformer/encoder_norm", x)


def flax_arrays(prefix, numbering, channels=3, patch=P):
    """Returns the arrays that all ViTs of the two projects have."""
    arrays = {
        f"{prefix}embedding/kernel": normal(patch, patch, channels, D),
        f"{prefix}embedding/bias": normal(D),
        f"{prefix}Transformer/encoder_norm/scale": gain(D),
        f"{prefix}Transformer/encoder_norm/bias": normal(D),
        f"{prefix}head/kernel": normal(D, CLASSES),
        f"{prefix}head/bias": normal(CLASSES),
    }
    for i in range(LAYERS):
        arrays |= flax_block_arrays(f"{prefix}Transformer/encoderblock_{i}", numbering)
    return arrays


def flax_patches(a, prefix, x):
    """Applies the strided convolution and flattens the grid."""
    kernel = a[f"{prefix}embedding/kernel"]
    x = conv(x, kernel, kernel.shape[0], (0, 0)) + a[f"{prefix}embedding/bias"]
    return x.reshape(len(x), -1, D)


def with_token(token, x):
    """Prepends a token (1, 1, d) to every sequence."""
    return np.concatenate([np.repeat(token, len(x), 0), x], 1)


PUBLISHED = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
CURRENT = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
POSITIONS = "Transformer/posembed_input/pos_embedding"


@pytest.mark.parametrize("pre_logits", [False, True])
def test_google(tmp_path, pre_logits):
    a = flax_arrays("", PUBLISHED)
    a |= {"cls": normal(1, 1, D), POSITIONS: normal(1, 1 + ROWS * COLUMNS, D)}
    if pre_logits:
        a |= {"pre_logits/kernel": normal(D, D), "pre_logits/bias": normal(D)}
    np.savez(tmp_path / "vit.npz", **a)

    def expected(pixels):
        x = with_token(a["cls"], flax_patches(a, "", normalized(pixels))) + a[POSITIONS]
        x = flax_encoder(a, "", PUBLISHED, x)[:, 0]
        if pre_logits:
            x = np.tanh(x @ a["pre_logits/kernel"] + a["pre_logits/bias"])
        return x @ a["head/kernel"] + a["head/bias"]

    grid = {"grid": (ROWS, COLUMNS)}
    check(tmp_path / "vit.npz", expected, (ROWS * P, COLUMNS * P), **grid)


def test_google_hybrid(tmp_path):
    units = (2, 2, 2, 2)  # the stem of the published R26 hybrids
    a = flax_arrays("", PUBLISHED, channels=2048, patch=1)
    a |= {"cls": normal(1, 1, D), POSITIONS: normal(1, 5, D)}
    a |= {"conv_root/kernel": normal(7, 7, 3, 64), "gn_root/scale": gain(64)}
    a["gn_root/bias"] = normal(64)
    channels = 64
    for stage, count in enumerate(units, 1):
        width = 64 * 2 ** (stage - 1)
        for unit in range(1, count + 1):
            name = f"block{stage}/unit{unit}"
            shapes = {"1": (1, 1, channels, width), "2": (3, 3, width, width)}
            shapes["3"] = (1, 1, width, 4 * width)
            if unit == 1:
                shapes["_proj"] = (1, 1, channels, 4 * width)
            for suffix, shape in shapes.items():
                a[f"{name}/conv{suffix}/kernel"] = normal(*shape)
                a[f"{name}/gn{suffix}/scale"] = gain(shape[-1])
                a[f"{name}/gn{suffix}/bias"] = normal(shape[-1])
            channels = 4 * width
    np.savez(tmp_path / "r26.npz", **a)

    def std_conv(name, x, stride=1):
        kernel = a[f"{name}/kernel"].astype("float64")
        kernel = kernel - kernel.mean((0, 1, 2))
        kernel = kernel / (kernel.std((0, 1, 2)) + 1e-5)
        return conv(x, kernel, stride, same(x.shape[1], kernel.shape[0], stride))

    def norm(name, x):
        return group_norm(x, a[f"{name}/scale"], a[f"{name}/bias"], 1e-6)

    def relu(x):
        return np.maximum(x, 0)

    def expected(pixels):
        x = relu(norm("gn_root", std_conv("conv_root", normalized(pixels), 2)))
        x = max_pool(x, same(x.shape[1], 3, 2), -np.inf)
        for stage, count in enumerate(units, 1):
            for unit in range(1, count + 1):
                name, stride = f"block{stage}/unit{unit}", 2 if stage > 1 and unit == 1 else 1
                y = relu(norm(f"{name}/gn1", std_conv(f"{name}/conv1", x)))
                y = relu(norm(f"{name}/gn2", std_conv(f"{name}/conv2", y, stride)))
                y = norm(f"{name}/gn3", std_conv(f"{name}/conv3", y))
                if unit == 1:
                    x = norm(f"{name}/gn_proj", std_conv(f"{name}/conv_proj", x, stride))
                x = relu(x + y)
        x = with_token(a["cls"], flax_patches(a, "", x)) + a[POSITIONS]
        return flax_encoder(a, "", PUBLISHED, x)[:, 0] @ a["head/kernel"] + a["head/bias"]

    check(tmp_path / "r26.npz", expected, (64, 64), tolerance=2e-4)


@pytest.mark.parametrize("prefix", ["params/", ""])
@pytest.mark.parametrize("classifier", ["token", "gap", "map"])
def test_big_vision(tmp_path, prefix, classifier):
    a = flax_arrays(prefix, CURRENT) | {f"{prefix}pos_embedding": normal(1, ROWS * COLUMNS, D)}
    if classifier == "token":
        a[f"{prefix}cls"] = normal(1, 1, D)
    head = f"{prefix}MAPHead_0"
    if classifier == "map":
        block = flax_block_arrays("block", CURRENT)
        a |= {
            name.replace("block", head): value
            for name, value in block.items()
            if "LayerNorm_1" not in name
        }
        a[f"{head}/probe"] = normal(1, 1, D)
    np.savez(tmp_path / "big_vision.npz", **a)

    def expected(pixels):
        x = flax_patches(a, prefix, normalized(pixels)) + a[f"{prefix}pos_embedding"]
        if classifier == "token":  # the class token has no position
            x = with_token(a[f"{prefix}cls"], x)
        x = flax_encoder(a, prefix, CURRENT, x)
        if classifier == "map":
            probe = np.repeat(a[f"{head}/probe"], len(x), 0)
            x = flax_attention(a, f"{head}/MultiHeadDotProductAttention_0", probe, x)
            x = x + flax_mlp(a, f"{head}/MlpBlock_0", flax_norm(a, f"{head}/LayerNorm_0", x))
            x = x[:, 0]
        else:
            x = x[:, 0] if classifier == "token" else x.mean(1)
        return x @ a[f"{prefix}head/kernel"] + a[f"{prefix}head/bias"]

    grid = {"grid": (ROWS, COLUMNS)}
    check(tmp_path / "big_vision.npz", expected, (ROWS * P, COLUMNS * P), **grid)


def test_bit(tmp_path):
    units, a, channels = (3, 4, 6, 3), {}, 64
    a["resnet/root_block/standardized_conv2d/kernel"] = normal(7, 7, 3, 64)
    for stage, count in enumerate(units, 1):
        width = 64 * 2 ** (stage - 1)
        for unit in range(1, count + 1):
            name = f"resnet/block{stage}/unit{unit:02d}"
            shapes = {"a": (1, 1, channels, width), "b": (3, 3, width, width)}
            shapes["c"] = (1, 1, width, 4 * width)
            for letter, shape in shapes.items():
                a[f"{name}/{letter}/standardized_conv2d/kernel"] = normal(*shape)
                a[f"{name}/{letter}/group_norm/gamma"] = gain(shape[2])
                a[f"{name}/{letter}/group_norm/beta"] = normal(shape[2])
            if unit == 1:
                kernel = normal(1, 1, channels, 4 * width)
                a[f"{name}/a/proj/standardized_conv2d/kernel"] = kernel
            channels = 4 * width
    a |= {"resnet/group_norm/gamma": gain(channels), "resnet/group_norm/beta": normal(channels)}
    a |= {"resnet/head/conv2d/kernel": 0.1 * normal(1, 1, channels, CLASSES)}
    a |= {"resnet/head/conv2d/bias": normal(CLASSES)}
    np.savez(tmp_path / "bit.npz", **a)

    def std_conv(name, x, stride=1):
        kernel = a[f"{name}/standardized_conv2d/kernel"].astype("float64")
        kernel = kernel - kernel.mean((0, 1, 2))
        kernel = kernel / np.sqrt(kernel.var((0, 1, 2)) + 1e-10)
        margin = kernel.shape[0] // 2
        return conv(x, kernel, stride, (margin, margin))

    def norm_relu(name, x):
        gamma, beta = a[f"{name}/group_norm/gamma"], a[f"{name}/group_norm/beta"]
        return np.maximum(group_norm(x, gamma, beta, 1e-5), 0)

    def expected(pixels):
        x = max_pool(std_conv("resnet/root_block", normalized(pixels), 2), (1, 1), 0)
        for stage, count in enumerate(units, 1):
            for unit in range(1, count + 1):
                name = f"resnet/block{stage}/unit{unit:02d}"
                stride = 2 if stage > 1 and unit == 1 else 1
                y = norm_relu(f"{name}/a", x)
                x = std_conv(f"{name}/a/proj", y, stride) if unit == 1 else x
                y = norm_relu(f"{name}/b", std_conv(f"{name}/a", y))
                y = norm_relu(f"{name}/c", std_conv(f"{name}/b", y, stride))
                x = x + std_conv(f"{name}/c", y)
        x = norm_relu("resnet", x).mean((1, 2))
        return x @ a["resnet/head/conv2d/kernel"][0, 0] + a["resnet/head/conv2d/bias"]

    check(tmp_path / "bit.npz", expected, (48, 64), tolerance=2e-4, image_size=(48, 64))


# torch: Hugging Face transformers and timm


def linear(a, name, x):
    """Applies torch.nn.Linear, whose weight is (out, in)."""
    return x @ a[f"{name}.weight"].T + a[f"{name}.bias"]


def linear_arrays(name, inputs, outputs):
    """Returns the arrays of torch.nn.Linear."""
    return {f"{name}.weight": normal(outputs, inputs), f"{name}.bias": normal(outputs)}


def norm_arrays(name):
    """Returns the arrays of torch.nn.LayerNorm."""
    return {f"{name}.weight": gain(D), f"{name}.bias": normal(D)}


def torch_norm(a, name, x, epsilon):
    """Applies torch.nn.LayerNorm."""
    return layer_norm(x, a[f"{name}.weight"], a[f"{name}.bias"], epsilon)


def torch_patches(a, name, x):
    """Applies torch.nn.Conv2d, whose weight is (out, in, height, width)."""
    x = conv(x, a[f"{name}.weight"].transpose(2, 3, 1, 0), P, (0, 0)) + a[f"{name}.bias"]
    return x.reshape(len(x), -1, D)


def split_heads(x):
    """Reshapes (b, tokens, d) to (b, tokens, heads, head_dim)."""
    return x.reshape(*x.shape[:2], HEADS, D // HEADS)


SQUARE = 2


def test_hugging_face_vit(tmp_path):
    e, a = "vit.embeddings", {}
    a |= {f"{e}.patch_embeddings.projection.weight": normal(D, 3, P, P)}
    a |= {f"{e}.patch_embeddings.projection.bias": normal(D), f"{e}.cls_token": normal(1, 1, D)}
    a |= {f"{e}.position_embeddings": normal(1, 1 + SQUARE**2, D)}
    for i in range(LAYERS):
        layer = f"vit.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            a |= linear_arrays(f"{layer}.attention.attention.{part}", D, D)
        a |= linear_arrays(f"{layer}.attention.output.dense", D, D)
        a |= linear_arrays(f"{layer}.intermediate.dense", D, F)
        a |= linear_arrays(f"{layer}.output.dense", F, D)
        a |= norm_arrays(f"{layer}.layernorm_before") | norm_arrays(f"{layer}.layernorm_after")
    a |= norm_arrays("vit.layernorm") | linear_arrays("classifier", D, CLASSES)
    save_file(a, tmp_path / "model.safetensors")
    config = {"num_attention_heads": HEADS, "hidden_act": "gelu", "layer_norm_eps": 1e-3}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **config}))

    def expected(pixels):
        x = torch_patches(a, f"{e}.patch_embeddings.projection", normalized(pixels))
        x = with_token(a[f"{e}.cls_token"], x) + a[f"{e}.position_embeddings"]
        for i in range(LAYERS):
            layer = f"vit.encoder.layer.{i}"
            y = torch_norm(a, f"{layer}.layernorm_before", x, 1e-3)
            q, k, v = (
                split_heads(linear(a, f"{layer}.attention.attention.{part}", y))
                for part in ("query", "key", "value")
            )
            y = attend(q, k, v).reshape(x.shape)
            x = x + linear(a, f"{layer}.attention.output.dense", y)
            y = torch_norm(a, f"{layer}.layernorm_after", x, 1e-3)
            y = gelu_exact(linear(a, f"{layer}.intermediate.dense", y))
            x = x + linear(a, f"{layer}.output.dense", y)
        return linear(a, "classifier", torch_norm(a, "vit.layernorm", x, 1e-3)[:, 0])

    check(tmp_path, expected, (SQUARE * P, SQUARE * P))


@pytest.mark.parametrize("registers", [0, 4])
def test_hugging_face_dinov2(tmp_path, registers):
    model = "dinov2_with_registers" if registers else "dinov2"
    e, a = f"{model}.embeddings", {}
    a |= {f"{e}.patch_embeddings.projection.weight": normal(D, 3, P, P)}
    a |= {f"{e}.patch_embeddings.projection.bias": normal(D), f"{e}.cls_token": normal(1, 1, D)}
    a |= {f"{e}.position_embeddings": normal(1, 1 + SQUARE**2, D), f"{e}.mask_token": normal(1, D)}
    if registers:
        a[f"{e}.register_tokens"] = normal(1, registers, D)
    for i in range(LAYERS):
        layer = f"{model}.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            a |= linear_arrays(f"{layer}.attention.attention.{part}", D, D)
        a |= linear_arrays(f"{layer}.attention.output.dense", D, D)
        a |= linear_arrays(f"{layer}.mlp.fc1", D, F) | linear_arrays(f"{layer}.mlp.fc2", F, D)
        a |= norm_arrays(f"{layer}.norm1") | norm_arrays(f"{layer}.norm2")
        a |= {f"{layer}.layer_scale{n}.lambda1": normal(D) for n in (1, 2)}
    a |= norm_arrays(f"{model}.layernorm") | linear_arrays("classifier", 2 * D, CLASSES)
    save_file(a, tmp_path / "model.safetensors")
    config = {"model_type": model, "num_attention_heads": HEADS, "layer_norm_eps": 1e-6}
    (tmp_path / "config.json").write_text(json.dumps(config))

    def expected(pixels):
        x = torch_patches(a, f"{e}.patch_embeddings.projection", normalized(pixels, IMAGENET))
        x = with_token(a[f"{e}.cls_token"], x) + a[f"{e}.position_embeddings"]
        if registers:  # inserted after the positions are added
            tokens = np.repeat(a[f"{e}.register_tokens"], len(x), 0)
            x = np.concatenate([x[:, :1], tokens, x[:, 1:]], 1)
        for i in range(LAYERS):
            layer = f"{model}.encoder.layer.{i}"
            y = torch_norm(a, f"{layer}.norm1", x, 1e-6)
            q, k, v = (
                split_heads(linear(a, f"{layer}.attention.attention.{part}", y))
                for part in ("query", "key", "value")
            )
            y = linear(a, f"{layer}.attention.output.dense", attend(q, k, v).reshape(x.shape))
            x = x + y * a[f"{layer}.layer_scale1.lambda1"]
            y = gelu_exact(linear(a, f"{layer}.mlp.fc1", torch_norm(a, f"{layer}.norm2", x, 1e-6)))
            x = x + linear(a, f"{layer}.mlp.fc2", y) * a[f"{layer}.layer_scale2.lambda1"]
        x = torch_norm(a, f"{model}.layernorm", x, 1e-6)
        return linear(a, "classifier", np.concatenate([x[:, 0], x[:, 1 + registers :].mean(1)], 1))

    check(tmp_path, expected, (SQUARE * P, SQUARE * P))


@pytest.mark.parametrize(("token", "registers"), [(True, 0), (True, 2), (False, 0)])
def test_timm(tmp_path, token, registers):
    a = linear_arrays("head", D, CLASSES)
    a |= {"patch_embed.proj.weight": normal(D, 3, P, P), "patch_embed.proj.bias": normal(D)}
    a |= {"pos_embed": normal(1, token + registers + SQUARE**2, D)}
    a |= {"cls_token": normal(1, 1, D)} if token else {}
    a |= {"reg_token": normal(1, registers, D)} if registers else {}
    for i in range(LAYERS):
        a |= linear_arrays(f"blocks.{i}.attn.qkv", D, 3 * D)
        a |= linear_arrays(f"blocks.{i}.attn.proj", D, D)
        a |= linear_arrays(f"blocks.{i}.mlp.fc1", D, F) | linear_arrays(f"blocks.{i}.mlp.fc2", F, D)
        a |= norm_arrays(f"blocks.{i}.norm1") | norm_arrays(f"blocks.{i}.norm2")
        if registers:
            a |= {f"blocks.{i}.ls{n}.gamma": normal(D) for n in (1, 2)}
    a |= norm_arrays("norm" if token else "fc_norm")
    save_file(a, tmp_path / "model.safetensors")
    config = {"architecture": "vit_small_patch4", "model_args": {"num_heads": HEADS}}
    config["global_pool"] = "token" if token else "avg"
    mean, std = (part.tolist() for part in IMAGENET)
    config["pretrained_cfg"] = {"mean": mean, "std": std, "input_size": [3, 8, 8]}
    (tmp_path / "config.json").write_text(json.dumps(config))

    def expected(pixels):
        x = torch_patches(a, "patch_embed.proj", normalized(pixels, IMAGENET))
        x = with_token(a["reg_token"], x) if registers else x
        x = (with_token(a["cls_token"], x) if token else x) + a["pos_embed"]
        for i in range(LAYERS):
            block, scale = f"blocks.{i}", [a.get(f"blocks.{i}.ls{n}.gamma", 1) for n in (1, 2)]
            y = linear(a, f"{block}.attn.qkv", torch_norm(a, f"{block}.norm1", x, 1e-6))
            q, k, v = (split_heads(part) for part in np.split(y, 3, -1))
            x = x + linear(a, f"{block}.attn.proj", attend(q, k, v).reshape(x.shape)) * scale[0]
            y = gelu_exact(linear(a, f"{block}.mlp.fc1", torch_norm(a, f"{block}.norm2", x, 1e-6)))
            x = x + linear(a, f"{block}.mlp.fc2", y) * scale[1]
        if token:
            return linear(a, "head", torch_norm(a, "norm", x, 1e-6)[:, 0])
        return linear(a, "head", torch_norm(a, "fc_norm", x.mean(1), 1e-6))

    check(tmp_path, expected, (SQUARE * P, SQUARE * P))
