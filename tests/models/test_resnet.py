import keras
import numpy as np
import pytest
from helpers.layers import check_layer
from helpers.processes import python

from vitkeras.errors import InputError
from vitkeras.layers.hybrid_stem import StdConv2D
from vitkeras.models.config import RESNETS, ResNetConfig
from vitkeras.models.resnet import BiTConv2D, PreActBottleneck, build_resnet, resnet

PARAMETERS = {  # 1000 classes; the released R50x1 and R101x1, and timm's R152x2, have these too
    "R50x1": 25_549_352, "R50x2": 97_988_712, "R101x1": 44_541_480, "R152x1": 60_185_128,
    "R152x2": 236_335_208,
}  # fmt: skip


def pixels(shape):
    """Returns random pixels, float32."""
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


def windows(x, side, strides, margin):
    """Returns the windows of a kernel after padding with zeros, `(b, h, w, c, side, side)`."""
    x = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))
    return view[:, ::strides, ::strides]


def standardized_kernel(conv):
    """Returns the kernel of a BiTConv2D with mean 0 and variance 1, `(h * w * in, out)`."""
    flat = np.asarray(conv.kernel, "float64").reshape(-1, conv.filters)
    return (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-10)


def group_normalized(x):
    """Applies GroupNorm without scale and bias."""
    grouped = x.astype("float64").reshape(len(x), -1, 32, x.shape[-1] // 32)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)


@pytest.mark.parametrize("strides, channels", [(1, 128), (1, 64), (2, 128)])
def test_unit(strides, channels, tmp_path):
    check_layer(lambda: PreActBottleneck(32, strides), (2, 5, 6, channels), tmp_path)


def test_convolution_is_a_layer(tmp_path):
    check_layer(lambda: BiTConv2D(4, 3, 2), (2, 6, 7, 5), tmp_path)


@pytest.mark.parametrize("shape", [(7, 8), (8, 7), (1, 2)])
@pytest.mark.parametrize("side, strides", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_the_convolution_pads_symmetrically_and_standardizes(side, strides, shape):
    x = np.random.default_rng(0).normal(size=(2, *shape, 5)).astype("float32")
    conv = BiTConv2D(4, side, strides)
    conv.build(x.shape)
    kernel = standardized_kernel(conv).reshape(side, side, 5, 4)
    expected = np.einsum("bhwcij,ijcf->bhwf", windows(x, side, strides, side // 2), kernel)
    np.testing.assert_allclose(conv(x), expected, atol=1e-4)


def test_epsilon_is_inside_the_square_root():
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 5)).astype("float32")
    outs = []
    for make in (BiTConv2D, StdConv2D):
        conv = make(4, 1)
        conv.build(x.shape)
        kernel = np.random.default_rng(1).normal(size=conv.kernel.shape)
        # For a std of 1e-5 the divisors are sqrt(2) and 2 times 1e-5.
        conv.kernel.assign(kernel / kernel.std((0, 1, 2)) * 1e-5)
        outs.append(np.asarray(conv(x)))
    np.testing.assert_allclose(outs[0], outs[1] * np.sqrt(2), rtol=1e-4, atol=1e-5)
    conv.kernel.assign(np.ones(conv.kernel.shape))
    assert not np.any(conv(x))


def test_the_shortcut_of_a_unit():
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 128)).astype("float32") / 100
    unit = PreActBottleneck(32)
    unit.build(x.shape)
    unit.norm_c.gamma.assign(np.zeros(32))  # disables the residual branch
    np.testing.assert_array_equal(unit(x), x)
    strided = PreActBottleneck(32, 2)
    strided.build(x.shape)
    strided.norm_c.gamma.assign(np.zeros(32))
    activation = group_normalized(x).clip(0)[:, ::2, ::2]
    expected = activation.reshape(-1, 128) @ standardized_kernel(strided.proj)
    np.testing.assert_allclose(np.asarray(strided(x)).reshape(-1, 128), expected, atol=1e-4)


def test_the_root_pads_its_pooling_with_zeros():
    model = resnet("R50x1", image_size=(33, 40), num_classes=2)
    images = pixels((2, 33, 40, 3))
    outputs = [model.get_layer(name).output for name in ("root", "root_pool")]
    root, pooled = (np.asarray(out) for out in keras.Model(model.input, outputs)(images))
    assert root.shape == (2, 17, 20, 64) and pooled.shape == (2, 9, 10, 64)
    np.testing.assert_array_equal(pooled, windows(root, 3, 2, 1).max((-1, -2)))
    assert (pooled[:, 0] >= 0).all() and (pooled[:, 1:-1, 1:] < 0).any()


def test_parameter_counts_without_allocating():
    counts = {}
    for variant in RESNETS:
        with keras.StatelessScope(initialize_variables=False):
            counts[variant] = resnet(variant).count_params()
    assert counts == PARAMETERS
    # Closed form: root; three kernels and three norms per unit, a projection in the first unit of
    # each stage; norm; head.
    for variant, (num_units, factor) in RESNETS.items():
        channels, total = 64 * factor, 7 * 7 * 3 * 64 * factor
        for stage, count in enumerate(num_units):
            w = 64 * factor * 2**stage
            total += channels * 4 * w
            for _ in range(count):
                total += channels * w + 9 * w * w + 4 * w * w + 2 * (channels + w + w)
                channels = 4 * w
        assert counts[variant] == total + 2 * channels + 1000 * channels + 1000


def test_layer_names_and_shapes():
    with keras.StatelessScope(initialize_variables=False):
        model = resnet("R101x1", image_size=(97, 130), num_classes=5)
    units = [
        f"stage{stage + 1}_unit{unit + 1:02d}"
        for stage, count in enumerate((3, 4, 23, 3))
        for unit in range(count)
    ]
    expected = ["root", *units, "norm", "pool", "head"]
    assert [layer.name for layer in model.layers if layer.name in expected] == expected
    assert model.name == "resnet_r101x1" and model.output_shape == (None, 5)
    shapes = {name: model.get_layer(name).output.shape[1:] for name in expected}
    assert shapes["root"] == (49, 65, 64)
    assert shapes["stage1_unit03"] == (25, 33, 256) and shapes["stage2_unit01"] == (13, 17, 512)
    assert shapes["stage3_unit23"] == (7, 9, 1024) and shapes["norm"] == (4, 5, 2048)
    for unit in units:
        assert model.get_layer(unit).project == unit.endswith("unit01")


def test_the_head_is_zero_and_features_are_its_input_also_in_bfloat16():
    model = resnet("R50x1", image_size=32, num_classes=3)
    images = pixels((2, 32, 32, 3))
    assert not np.any(model(images))
    normed = np.asarray(keras.Model(model.input, model.get_layer("norm").output)(images))
    expected = normed.clip(0).mean((1, 2))
    for dtype, tolerance in (("float32", 1e-6), ("mixed_bfloat16", 0.3)):
        features = resnet("R50x1", image_size=32, include_top=False, dtype=dtype)
        features.set_weights(model.get_weights()[:-2])
        out = features(images)
        assert features.layers[-1].name == "features" and out.shape == (2, 2048)
        assert out.dtype == "float32"
        assert {w.dtype for w in features.weights} == {"float32"}
        assert np.linalg.norm(out - expected) < tolerance * np.linalg.norm(expected)
    assert features.get_layer("stage4_unit03").output.dtype == "bfloat16"


@pytest.mark.slow
def test_saved_and_loaded_in_a_fresh_process_on_jax(tmp_path):
    model = build_resnet(ResNetConfig((1, 1, 1, 2), image_size=(33, 40), num_classes=3))
    head = model.get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(size=head.kernel.shape) / 10)
    images = pixels((2, 33, 40, 3))
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded(images), model(images))
    code = (
        "import sys, keras, numpy as np, vitkeras\n"
        "model = keras.saving.load_model(sys.argv[1] + '/model.keras')\n"
        "logits = model(np.load(sys.argv[1] + '/images.npy'))\n"
        "np.save(sys.argv[1] + '/out.npy', keras.ops.convert_to_numpy(logits))"
    )
    process = python("-c", code, tmp_path, KERAS_BACKEND="jax")
    assert process.returncode == 0, process.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model(images), atol=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("R50x4",), "one of R50x1, R50x2, R101x1, R152x1, R152x2. .*'R50x4'. Did"),
        (("R18",), r"Received: variant='R18'\.$"),
        (("R50x1", {"image_size": 0}), "positive integer or a pair"),
        (("R50x1", {"num_classes": 0}), "num_classes=0"),
        (("R50x1", {"num_classes": None}), "num_classes=None"),
        (("R50x1", {"dtype": "float99"}), "dtype='float99'"),
    ],
)
def test_bad_arguments(arguments, message):
    variant, *options = arguments
    with pytest.raises(InputError, match=message):
        resnet(variant, **(options[0] if options else {}))
