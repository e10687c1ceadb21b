import keras
import numpy as np
import pytest
from conftest import check_layer, python

from vitkeras.errors import InputError
from vitkeras.resnet import RESNETS, BiTConv2D, PreActBottleneck, resnet
from vitkeras.stem import StdConv2D

PARAMETERS = {  # 1000 classes; the released R50x1 and R101x1, and timm's R152x2, have these too
    "R50x1": 25_549_352, "R50x2": 97_988_712, "R101x1": 44_541_480, "R152x1": 60_185_128,
    "R152x2": 236_335_208,
}  # fmt: skip


def windows(x, side, strides, margin):
    """All places that a kernel sees after padding with zeros, `(b, h, w, c, side, side)`."""
    x = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))
    return view[:, ::strides, ::strides]


def standardised(conv):
    flat = np.asarray(conv.kernel, "float64").reshape(-1, conv.filters)
    return (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-10)


def group_normalised(x):
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
def test_convolution_pads_alike_and_standardises(side, strides, shape):
    x = np.random.default_rng(0).normal(size=(2, *shape, 5)).astype("float32")
    conv = BiTConv2D(4, side, strides)
    conv.build(x.shape)
    kernel = standardised(conv).reshape(side, side, 5, 4)
    expected = np.einsum("bhwcij,ijcf->bhwf", windows(x, side, strides, side // 2), kernel)
    np.testing.assert_allclose(conv(x), expected, atol=1e-4)


def test_epsilon_stands_under_the_root():
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 5)).astype("float32")
    outs = []
    for make in (BiTConv2D, StdConv2D):
        conv = make(4, 1)
        conv.build(x.shape)
        kernel = np.random.default_rng(1).normal(size=conv.kernel.shape)
        # Of a deviation of 1e-5, what divides is sqrt(2) and 2 times as much.
        conv.kernel.assign(kernel / kernel.std((0, 1, 2)) * 1e-5)
        outs.append(np.asarray(conv(x)))
    np.testing.assert_allclose(outs[0], outs[1] * np.sqrt(2), rtol=1e-4, atol=1e-5)
    conv.kernel.assign(np.ones(conv.kernel.shape))
    assert not np.any(conv(x))


def test_unit_is_what_it_says():
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 128)).astype("float32") / 100
    unit = PreActBottleneck(32)
    unit.build(x.shape)
    unit.norm_c.gamma.assign(np.zeros(32))  # nothing comes through the branch
    np.testing.assert_array_equal(unit(x), x)
    strided = PreActBottleneck(32, 2)
    strided.build(x.shape)
    strided.norm_c.gamma.assign(np.zeros(32))
    seen = group_normalised(x).clip(0)[:, ::2, ::2]
    expected = seen.reshape(-1, 128) @ standardised(strided.proj)
    np.testing.assert_allclose(np.asarray(strided(x)).reshape(-1, 128), expected, atol=1e-4)


def test_root_pools_with_zeros():
    model = resnet("R50x1", image_size=(33, 40), num_classes=2)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 33, 40, 3)).astype("float32")
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
    # Closed form: root; of each unit three kernels and three norms, and a projection in the first
    # one of a stage; norm and head.
    for variant, (num_units, factor) in RESNETS.items():
        coming, total = 64 * factor, 7 * 7 * 3 * 64 * factor
        for stage, count in enumerate(num_units):
            w = 64 * factor * 2**stage
            total += coming * 4 * w
            for _ in range(count):
                total += coming * w + 9 * w * w + 4 * w * w + 2 * (coming + w + w)
                coming = 4 * w
        assert counts[variant] == total + 2 * coming + 1000 * coming + 1000


def test_layer_names_and_shapes_are_the_contract():
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


def test_head_starts_at_zero_and_features_are_what_it_sees_also_in_bfloat16():
    model = resnet("R50x1", image_size=32, num_classes=3)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype("float32")
    assert not np.any(model(images))
    normed = np.asarray(keras.Model(model.input, model.get_layer("norm").output)(images))
    seen = normed.clip(0).mean((1, 2))
    for dtype, tolerance in (("float32", 1e-6), ("mixed_bfloat16", 0.3)):
        features = resnet("R50x1", image_size=32, include_top=False, dtype=dtype)
        features.set_weights(model.get_weights()[:-2])
        out = features(images)
        assert features.layers[-1].name == "features" and out.shape == (2, 2048)
        assert out.dtype == "float32"
        assert {w.dtype for w in features.weights} == {"float32"}
        assert np.linalg.norm(out - seen) < tolerance * np.linalg.norm(seen)
    assert features.get_layer("stage4_unit03").output.dtype == "bfloat16"


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_saved_and_loaded_in_a_fresh_process(backend, tmp_path, monkeypatch):
    monkeypatch.setitem(RESNETS, "R17x1", ((1, 1, 1, 2), 1))  # the reader does without it
    model = resnet("R17x1", image_size=(33, 40), num_classes=3)
    head = model.get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(size=head.kernel.shape) / 10)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 33, 40, 3)).astype("float32")
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, keras, numpy as np, vitkeras.resnet\n"
        "model = keras.saving.load_model(sys.argv[1] + '/model.keras')\n"
        "logits = model.predict(np.load(sys.argv[1] + '/images.npy'), verbose=0)\n"
        "np.save(sys.argv[1] + '/out.npy', logits)"
    )
    process = python("-c", code, tmp_path, KERAS_BACKEND=backend)
    assert process.returncode == 0, process.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model(images), atol=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("R50x4",), "one of R50x1, R50x2, R101x1, R152x1, R152x2. Received: variant='R50x4'. Did"),
        (("R18",), r"Received: variant='R18'\.$"),
        (("R50x1", {"image_size": 0}), "positive integer or a pair"),
        (("R50x1", {"num_classes": 0}), "`num_classes` must be at least 1. .*num_classes=0"),
        (("R50x1", {"dtype": "float99"}), "dtype='float99'"),
    ],
)
def test_bad_arguments(arguments, message):
    variant, *options = arguments
    with pytest.raises(InputError, match=message):
        resnet(variant, **(options[0] if options else {}))
