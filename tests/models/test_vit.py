import json

import keras
import numpy as np
import pytest
from helpers.models import TINY
from helpers.processes import python

import vitkeras as vk
from vitkeras.errors import InputError
from vitkeras.layers.embeddings import PositionEmbedding
from vitkeras.models.resnet import build_resnet

PARAMETERS = {  # 1000 classes at 224, from the authors' own tests
    "Ti/16": 5_717_416, "S/16": 22_050_664, "S/32": 22_878_952, "B/8": 86_576_872,
    "B/16": 86_567_656, "B/32": 88_224_232, "L/16": 304_326_632, "L/32": 306_535_400,
    "H/14": 632_045_800, "R+Ti/16": 6_337_704, "R26+S/32": 36_431_912,
    "R26+B/32": 101_383_976, "R50+B/16": 98_659_112, "R50+L/32": 328_994_856,
}  # fmt: skip


def pixels(shape):
    """Returns random pixels, float32."""
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


@pytest.mark.parametrize(
    "variants",
    [
        ["Ti/16", "R+Ti/16", "g/14"],
        pytest.param([*PARAMETERS, "g/14", "G/14"], marks=pytest.mark.slow),
    ],
)
def test_parameter_counts_without_allocating(variants):
    code = (
        "import json, re, keras, vitkeras as vk\n"
        "counts = {}\n"
        f"for variant in {variants!r}:\n"
        "    with keras.StatelessScope(initialize_variables=False):\n"
        "        counts[variant] = vk.vit(variant).count_params()\n"
        # getrusage would include the peak of the parent process.
        "status = open('/proc/self/status').read()\n"
        "counts['MiB'] = int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024\n"
        "print(json.dumps(counts))"
    )
    process = python("-c", code)
    counts = json.loads(process.stdout.splitlines()[-1])
    assert counts.pop("MiB") < 2000
    assert list(counts) == variants
    # Closed form: projection, token, positions; per block 4 d^2 + 2 d f and biases; norm; head.
    expected = dict(PARAMETERS)
    for giant, (d, f, layers) in {"g/14": (1408, 6144, 40), "G/14": (1664, 8192, 48)}.items():
        block = 4 * d * d + 4 * d + 2 * d * f + f + d + 4 * d
        size = (588 * d + d) + d + 257 * d + layers * block + 2 * d + 1000 * d + 1000
        expected[giant] = size
    assert counts == {variant: expected[variant] for variant in variants}


SAVED = [
    {},
    {"classifier": "gap"},
    {"pre_logits": True, "image_size": (8, 16)},
    {"include_top": False},
    {"dropout_rate": 0.1, "stochastic_depth_rate": 0.2, "layer_scale": 0.1, "gelu": "exact"},
    {"dtype": "mixed_bfloat16"},
    {"variant": "R+Ti/16", "image_size": (32, 64)},
    {"classifier": "map", "positions": "sincos_2d", "num_registers": 2},
    {"positions": "learned_2d", "num_registers": 1},
    {"positions": "relative", "classifier": "token_gap", "epsilon": 1e-3},
    {"classifier": "gap_norm", "channels": 1, "include_rescaling": False},
    {"positions_at": "every_block", "num_registers": 1},
    {"positions_at": "every_block_shared", "positions": "learned_2d"},
    {"variant": "R26+S/32", "image_size": 64, "dtype": "mixed_bfloat16"},
]


def test_models_are_saved_and_loaded_in_a_fresh_process(tmp_path):
    saved = []
    for i, options in enumerate(SAVED):
        model = vk.vit(**{"variant": "Ti/4", "image_size": 8, "num_classes": 3, **TINY, **options})
        for weight in model.weights:
            weight.assign(weight + 0.1 * np.random.default_rng(0).normal(size=weight.shape))
        images = pixels((2, *model.input_shape[1:])) / (1 if model.config.include_rescaling else 99)
        output = keras.ops.convert_to_numpy(model(images))
        assert output.dtype == "float32" and np.ptp(output) > 0
        model.save(tmp_path / f"{i}.keras")
        np.save(tmp_path / f"{i}_images.npy", images)
        saved.append((model.config, output))
    code = (
        "import sys, json, keras, numpy as np, vitkeras\n"
        "for i in range(int(sys.argv[2])):\n"
        "    model = keras.saving.load_model(f'{sys.argv[1]}/{i}.keras')\n"
        "    images = np.load(f'{sys.argv[1]}/{i}_images.npy')\n"
        "    output = keras.ops.convert_to_numpy(model(images))\n"
        "    np.save(f'{sys.argv[1]}/{i}_output.npy', output)\n"
        "    print(json.dumps(model.config.to_dict()))"
    )
    process = python("-c", code, tmp_path, len(SAVED))
    assert process.returncode == 0, process.stderr
    for i, (line, (config, output)) in enumerate(
        zip(process.stdout.splitlines(), saved, strict=True)
    ):
        assert vk.ViTConfig.from_dict(json.loads(line)) == config, SAVED[i]
        loaded = np.load(tmp_path / f"{i}_output.npy")
        np.testing.assert_allclose(loaded, output, atol=1e-6, err_msg=str(SAVED[i]))


def test_a_model_of_an_earlier_version_is_refused():
    model = vk.vit("Ti/4", image_size=8, **TINY)
    config = model.get_config()
    del config["architecture"]
    with pytest.raises(InputError, match="earlier version"):
        vk.VisionModel.from_config(config)
    rewired = keras.models.clone_model(model)
    assert (
        rewired.config is None and vk.VisionModel.from_config(rewired.get_config()).config is None
    )


def test_jax_gives_the_same_logits_and_does_not_import_tensorflow(tmp_path):
    model = vk.vit("S/16", image_size=(64, 96), num_classes=7, num_layers=4)
    model.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(384, 7)))
    images = pixels((2, 64, 96, 3))
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, keras, numpy as np, vitkeras\n"
        "assert keras.backend.backend() == 'jax' and 'tensorflow' not in sys.modules\n"
        "model = keras.saving.load_model(sys.argv[1] + '/model.keras')\n"
        "images = np.load(sys.argv[1] + '/images.npy')\n"
        "np.save(sys.argv[1] + '/out.npy', keras.ops.convert_to_numpy(model(images)))\n"
        "from vitkeras.layers import transformer\n"
        "calls, attend = [], transformer.ops.dot_product_attention\n"
        "transformer.ops.dot_product_attention = lambda *x: calls.append(x) or attend(*x)\n"
        "transformer._has_fused_attention = lambda: True  # as on a GPU\n"
        "np.save(sys.argv[1] + '/fused.npy', keras.ops.convert_to_numpy(model(images)))\n"
        "assert len(calls) == 4"
    )
    process = python("-c", code, tmp_path, KERAS_BACKEND="jax")
    assert process.returncode == 0, process.stderr
    for name in ("out", "fused"):
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), model(images), atol=1e-4)


def test_layer_names():
    model = vk.vit("Ti/4", image_size=8, num_classes=3, pre_logits=True, **TINY)
    names = [layer.name for layer in model.layers]
    expected = [
        "rescaling", "patches", "patch_encoder", "block_00", "block_01", "norm", "pre_logits",
        "head",
    ]  # fmt: skip
    assert [name for name in names if name in expected] == expected


def test_the_head_is_zero_and_features_are_its_input():
    model = vk.vit("Ti/4", image_size=8, num_classes=3, **TINY)
    images = pixels((2, 8, 8, 3))
    assert not np.any(model(images))
    features = vk.vit("Ti/4", image_size=8, include_top=False, **TINY)
    features.set_weights(model.get_weights()[:-2])
    head_input = keras.Model(model.input, model.get_layer("head").input)
    np.testing.assert_allclose(features(images), head_input(images), atol=1e-6)
    assert features.output_shape == (None, 24)


def test_gap_is_the_mean_of_the_patches_without_a_class_token():
    model = vk.vit("Ti/4", image_size=8, classifier="gap", include_top=False, **TINY)
    images = pixels((2, 8, 8, 3))
    tokens = keras.Model(model.input, model.get_layer("norm").output)(images)
    assert tokens.shape == (2, 4, 24)
    np.testing.assert_allclose(model(images), np.mean(tokens, axis=1), atol=1e-6)


def test_stochastic_depth_grows_linearly():
    model = vk.vit("Ti/4", image_size=8, stochastic_depth_rate=0.3, **TINY | {"num_layers": 4})
    rates = [model.get_layer(f"block_{i:02d}").stochastic_depth_rate for i in range(4)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("X/16",), "`variant` must be one of Ti, S, B, L, H, g, G.*'X/16'"),
        (("B16",), "Received: variant='B16'. Did you mean \"B/16\""),
        (
            ("B/16", {"image_size": 225}),
            "image_size=225, patch size 16. Nearest sizes: 224x224, 240",
        ),
        (("R50+B/32", {"image_size": 240}), "patch size 32. Nearest sizes: 224x224, 256x256"),
        (("R+Ti/16", {"image_size": 240}), "patch size 32. Nearest sizes: 224x224, 256x256"),
        (("R50+S/16",), "or one of R\\+Ti/16.*variant='R50\\+S/16'"),
        (("B/16", {"image_size": (224, 0)}), "positive integer or a pair"),
        (("B/16", {"image_size": "big"}), "positive integer or a pair.*'big'"),
        (("B/16", {"classifier": "max"}), "`classifier` must be one of token, .*'max'"),
        (("B/16", {"positions": "rotary"}), "`positions` must be one of.*'rotary'"),
        (("B/16", {"positions_at": "everywhere"}), "`positions_at` must be one of.*'everywhere'"),
        (
            ("B/16", {"positions_at": "every_block", "positions": "relative"}),
            "must be input unless.*positions='relative'",
        ),
        (("B/16", {"num_registers": -1}), "num_registers=-1"),
        (
            ("Ti/16", {"positions": "sincos_2d", "hidden_dim": 6}),
            "hidden_dim=6",
        ),
        (("B/16", {"gelu": "quick"}), "`gelu` must be one of"),
        (("B/16", {"num_heads": 5}), "hidden_dim=768, num_heads=5"),
        (("B/16", {"dtype": "float99"}), "dtype='float99'"),
        (("B/16", {"stochastic_depth_rate": 1}), r"stochastic_depth_rate=1\."),
        (("B/16", {"dropout_rate": "0.1"}), "dropout_rate='0.1'"),
        (("B/16", {"epsilon": -1e-6}), "epsilon=-1e-06"),
        (("B/16", {"layer_scale": -1}), "layer_scale=-1"),
        (("B/16", {"remat": "no"}), "remat='no'"),
        (("B/16", {"channels": 0}), "channels=0"),
    ],
)
def test_bad_arguments(arguments, message):
    variant, *options = arguments
    with pytest.raises(InputError, match=message):
        vk.vit(variant, **(options[0] if options else {}))


@pytest.mark.parametrize(
    "name", ["num_classes", "hidden_dim", "mlp_dim", "num_heads", "num_layers"]
)
def test_sizes_are_positive_integers(name):
    bad = [0, -1, 2.0, True, "3"] + ([None] if name == "num_classes" else [])
    for value in bad:
        with pytest.raises(InputError, match=f"`{name}`.*{name}={value}|'3'"):
            vk.vit("Ti/16", image_size=16, **{"num_layers": 1, name: value})
    model = vk.vit("Ti/16", image_size=np.int64(16), **{"num_layers": 1, name: np.int64(3)})
    assert getattr(model.config, name) == 3 and type(getattr(model.config, name)) is int


@pytest.mark.parametrize("make", ["vit", "resnet"])
def test_pixels_of_every_dtype_give_the_same_features_also_when_rewired(make):
    def build(**options):
        if make == "vit":
            return vk.vit("Ti/8", image_size=16, include_top=False, **TINY, **options)
        config = vk.ResNetConfig((1, 1), image_size=16, num_classes=None, **options)
        return build_resnet(config)

    model = build()
    x = pixels((2, 16, 16, 3))
    expected = np.asarray(model(x))
    assert np.ptp(expected) > 0.01
    rewired = [
        model,
        keras.Model(model.input, model.output),
        keras.Sequential([model]),
        keras.Model(model.input, model.get_layer("features").output),
    ]
    for other in rewired:
        for dtype in ("uint8", "int32", "int64", "float16", "float64"):
            np.testing.assert_array_equal(other(x.astype(dtype)), expected)
        predicted = other.predict(x.astype("uint8"), verbose=0)
        np.testing.assert_allclose(predicted, expected, atol=1e-5)
    without_rescaling = build(include_rescaling=False)
    without_rescaling.set_weights(model.get_weights())
    np.testing.assert_allclose(without_rescaling(x / 127.5 - 1), expected, atol=1e-5)


def test_bfloat16_models_rescale_in_float32():
    model = vk.vit("Ti/4", image_size=8, dtype="mixed_bfloat16", **TINY)
    rescaled = keras.Model(model.input, model.get_layer("rescaling").output)(pixels((1, 8, 8, 3)))
    np.testing.assert_allclose(rescaled, pixels((1, 8, 8, 3)) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("classifier", ["token", "gap", "map"])
@pytest.mark.parametrize("positions", ["none", "learned", "learned_2d", "sincos_2d", "relative"])
def test_the_order_of_patches_matters_unless_there_are_no_positions(positions, classifier):
    model = vk.vit(
        "Ti/4", image_size=8, classifier=classifier, positions=positions, num_registers=1,
        include_top=False, **TINY,
    )  # fmt: skip
    image = pixels((8, 8, 3))
    moved = np.concatenate([image[4:], image[:4]])  # swaps the two rows of patches
    out, other = np.asarray(model(np.stack([image, moved])))
    assert (np.abs(out - other).max() < 1e-4) == (positions == "none")


@pytest.mark.parametrize("positions_at", ["every_block", "every_block_shared"])
def test_positions_are_added_before_every_block(positions_at):
    options = {"image_size": 8, "num_registers": 1, "include_top": False, **TINY}
    model = vk.vit("Ti/4", positions_at=positions_at, **options)
    plain = vk.vit("Ti/4", positions="none", **options)
    added = [layer for layer in model.layers if isinstance(layer, PositionEmbedding)]
    names = ["positions"] if positions_at == "every_block_shared" else [
        "positions_00", "positions_01"
    ]  # fmt: skip
    assert [layer.name for layer in added] == names
    for weight in model.weights:
        weight.assign(np.random.default_rng(len(weight.path)).normal(size=weight.shape))
    tables = {weight.path for layer in added for weight in layer.weights}
    plain.set_weights([w for w in model.weights if w.path not in tables])
    images = pixels((2, 8, 8, 3))
    x = plain.get_layer("patches")(plain.get_layer("rescaling")(images))
    x = plain.get_layer("patch_encoder")(x)
    for i, layer in enumerate(added * 2 if len(added) == 1 else added):
        table = np.asarray(layer.embedding)
        x = np.array(x)
        x[:, :1] += table[:, :1]
        x[:, 2:] += table[:, 1:]  # the register between them has none
        x = plain.get_layer(f"block_{i:02d}")(x)
    expected = plain.get_layer("norm")(x)[:, 0]
    np.testing.assert_allclose(model(images), expected, atol=1e-4)
    assert not np.allclose(model(images), plain(images))


def test_token_gap_is_the_class_token_and_the_mean_of_the_patches():
    options = {"image_size": 8, "num_registers": 2, "include_top": False, **TINY}
    model = vk.vit("Ti/4", classifier="token_gap", **options)
    images = pixels((2, 8, 8, 3))
    tokens = np.asarray(keras.Model(model.input, model.get_layer("norm").output)(images))
    assert tokens.shape == (2, 7, 24) and model.output_shape == (None, 48)
    expected = np.concatenate([tokens[:, 0], tokens[:, 3:].mean(1)], 1)
    np.testing.assert_allclose(model(images), expected, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_remat_keeps_weights_and_dropout_masks(jit_compile):
    rng = np.random.default_rng(0)
    x, y = pixels((24, 8, 8, 3)), rng.integers(0, 3, 24)
    found = []
    for remat in (False, True):
        keras.utils.set_random_seed(1)
        model = vk.vit(
            "Ti/4", image_size=8, num_classes=3, dropout_rate=0.3, stochastic_depth_rate=0.5,
            remat=remat, **TINY,
        )  # fmt: skip
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, jit_compile=jit_compile)
        losses = model.fit(x, y, batch_size=8, epochs=3, verbose=0).history["loss"]
        found.append([losses, *(weight.numpy() for weight in model.weights)])
    assert any("seed" in weight.path for weight in model.non_trainable_variables)
    for once, again in zip(*found, strict=True):
        np.testing.assert_allclose(once, again, atol=1e-5)


@pytest.mark.slow
def test_remat_keeps_the_dropout_masks_of_each_replica():
    code = """
import sys, keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import vitkeras as vk

def train(remat):
    keras.utils.set_random_seed(0)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = vk.vit("Ti/4", image_size=8, num_classes=3, hidden_dim=24, mlp_dim=48, num_heads=3,
                       num_layers=2, dropout_rate=0.3, stochastic_depth_rate=0.3, remat=remat)
        model.compile(keras.optimizers.SGD(0.3), "mse")
    images = np.random.default_rng(0).uniform(0, 255, (32, 8, 8, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((images, images[:, 0, 0] / 255)).batch(16)
    model.fit(data, epochs=4, verbose=0)
    return np.concatenate([np.ravel(v) for v in model.trainable_variables])

print(np.abs(train(True) - train(False)).max())
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.splitlines()[-1]) < 1e-5
