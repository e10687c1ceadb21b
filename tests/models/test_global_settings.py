"""Global settings of Keras and TensorFlow change no result, except the dtype of computations."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.images import encode, photo
from helpers.models import TINY
from helpers.processes import python
from helpers.sources import NumberedSource

import vitkeras as vk
from vitkeras import data, interpret, training
from vitkeras.errors import InputError
from vitkeras.evaluation.metrics import make_evaluator
from vitkeras.models.builder import build_model
from vitkeras.models.config import ResNetConfig, ViTConfig

VITS = {
    "token": {},
    "gap": {"classifier": "gap", "positions": "sincos_2d"},
    "gap_norm": {"classifier": "gap_norm", "positions": "relative"},
    "map": {"classifier": "map", "positions": "learned_2d", "pre_logits": True},
    "token_gap": {"classifier": "token_gap", "layer_scale": 0.1, "num_registers": 2},
    "hybrid": {"stem_units": (1, 1)},
}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), np.uint8)


def configs():
    sizes = {**TINY, "image_size": (32, 64), "num_classes": 3}
    for name, fields in VITS.items():
        yield name, ViTConfig(patch_size=2 if name == "hybrid" else 8, **(sizes | fields))
    yield "resnet", ResNetConfig((1, 1), 1, (32, 64), num_classes=3)


def with_weights(model):
    """Gives a model the same random weights whatever the global settings are."""
    rng = np.random.default_rng(1)
    model.set_weights([0.3 * rng.normal(size=w.shape).astype("float32") for w in model.weights])
    return model


def outputs(dtype=None):
    """Outputs of models, interpretation, preprocessing and augmentation, float64 by name."""
    results = {}
    for name, config in configs():
        model = with_weights(build_model(config, dtype))
        results[name] = model(IMAGES, training=False)
        if name in ("token", "gap", "hybrid"):
            results[f"{name} rollout"] = interpret.attention_rollout(model, IMAGES)
            results[f"{name} norms"] = interpret.token_norms(model, IMAGES)
            results[f"{name} evidence"] = interpret.class_evidence(model, IMAGES, [0, 2])
            results[f"{name} filters"] = interpret.first_filters(model)
    if keras.backend.backend() == "tensorflow":
        source, preprocessing = NumberedSource(), data.Preprocessing((32, 64))
        file = encode(photo(50, 70))
        results["image"] = preprocessing.evaluation_image(file)
        results["pixels"] = preprocessing.resize(IMAGES[:, :20])
        augmentation = data.Augmentation("inception_flip", 0.4, 2, 10, 0.5, 0.2)
        results["augmented"] = augmentation.image(preprocessing, file, tf.constant([1, 2]))
        batches = data.evaluation_batches(source, "test", preprocessing, 20)
        results |= make_evaluator(model)(batches)
    return {name: np.asarray(value, "float64") for name, value in results.items()}


def largest_difference(results, expected):
    assert results.keys() == expected.keys()
    return max(
        np.abs(results[name] - value).max() / np.abs(value).max()
        for name, value in expected.items()
    )


@pytest.fixture(scope="module")
def expected():
    return outputs()


@pytest.fixture
def reset_settings():
    yield
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    tf.config.run_functions_eagerly(False)


SETTINGS = {
    "channels_first": lambda: keras.config.set_image_data_format("channels_first"),
    "float64": lambda: (
        keras.config.set_floatx("float64"), keras.config.set_dtype_policy("float64")
    ),
    "eagerly": lambda: tf.config.run_functions_eagerly(True),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Even though the")  # of run_functions_eagerly
@pytest.mark.parametrize(
    "setting",
    ["channels_first", *(pytest.param(x, marks=pytest.mark.slow) for x in ("float64", "eagerly"))],
)
def test_a_global_setting_changes_no_result(setting, expected, reset_settings):
    SETTINGS[setting]()
    assert largest_difference(outputs(), expected) < 1e-5


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_global_policy_is_that_of_the_argument(policy):
    config = dict(configs())["hybrid"]
    expected = with_weights(build_model(config, policy))
    keras.config.set_dtype_policy(policy)
    model = with_weights(build_model(config))
    for layer, other in zip(model.layers, expected.layers, strict=True):
        assert layer.dtype_policy.name == other.dtype_policy.name or layer.name == "images"
    np.testing.assert_array_equal(model(IMAGES), expected(IMAGES))
    assert {w.dtype for w in model.weights} == {"float32"}


@pytest.mark.slow
def test_a_global_setting_changes_no_result_on_jax():
    code = (
        "import numpy as np, keras; from models import test_global_settings as t; a = t.outputs();"
        "[(t.SETTINGS[s](), print(t.largest_difference(t.outputs(), a)))"
        " for s in ('channels_first', 'float64')]"
    )
    process = python("-c", code, KERAS_BACKEND="jax", timeout=500)
    assert process.returncode == 0, process.stderr
    assert all(float(line) < 1e-5 for line in process.stdout.split()), process.stdout


@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=pytest.mark.slow), "bfloat16"])
def test_gradients_of_several_dtypes_are_clipped_by_their_norm(dtype):
    model = vk.vit("Ti/8", image_size=16, num_classes=3, dtype=dtype, **TINY)
    assert len({w.dtype for w in model.trainable_weights}) == 2  # the head is float32
    model.compile(training.make_optimizer("sgd", 1.0, clip_norm=1e-3), "mse")
    before = model.get_weights()
    model.fit(IMAGES[:, :16, :16], 9 * np.ones((2, 3)), verbose=0)
    change = [(a - b).astype("float64") for a, b in zip(model.get_weights(), before, strict=True)]
    norm = np.sqrt(sum((x**2).sum() for x in change))
    assert abs(norm - 1e-3) < 2e-5


@pytest.mark.parametrize("how", ["run_eagerly", "run_functions_eagerly"])
def test_eager_executions_of_several_steps_end_with_the_data_without_a_warning(how, reset_settings):
    def losses(**options):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        model = vk.Model(inputs, keras.layers.Dense(3)(inputs))
        model.compile(training.make_optimizer("adamw", 0.01, 0.1), "mse", **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "Even though the")  # of run_functions_eagerly
            history = model.fit(
                np.eye(6, 4), np.eye(6, 3), batch_size=1, epochs=2, shuffle=False, verbose=0
            )  # fmt: skip
        return history.history["loss"]

    expected = losses(steps_per_execution=4)
    options = {"run_eagerly": True} if how == "run_eagerly" else {}
    tf.config.run_functions_eagerly(not options)
    np.testing.assert_allclose(losses(steps_per_execution=4, **options), expected, rtol=1e-5)


def test_debug_mode_of_tf_data_is_refused(monkeypatch):
    from tensorflow.python.data.ops import debug_mode

    monkeypatch.setattr(debug_mode, "DEBUG_MODE", True)
    arguments = (NumberedSource(), data.Preprocessing((4, 4)), 10, 1, 0, data.Augmentation())
    with pytest.raises(InputError, match="enable_debug_mode` must not be used"):
        data.training_batches(*arguments)
