"""Configs are validated completely before any data is read."""

import pytest
from helpers.models import TINY
from helpers.processes import python

import vitkeras as vk
from vitkeras import configs, data
from vitkeras.cli import from_config
from vitkeras.cli.config_validation import validate
from vitkeras.errors import InputError
from vitkeras.io.run_directory import RunDirectory


def config(**fields):
    """Returns the base config of a tiny model with changed fields."""
    result = configs.base_config()
    result.update(variant="Ti/8", image_size=(32, 32), **TINY)
    with result.ignore_type():
        for name, value in fields.items():
            result[name] = value
    return result


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    """Fails a test that opens a data source."""

    def open_source(*arguments, **options):
        raise AssertionError("data were opened")

    monkeypatch.setattr(data, "open_source", open_source)


def test_valid_configs():
    validate(config())
    validate(config(variant="R50x1", hidden_dim=None, image_size=(33, 40)))
    validate(config(resize="crop", crop_fraction=1, crop="resize_and_flip"))
    validate(config(freeze="blocks:2", shots=5, total_steps=600, clip_norm=1.0))


@pytest.mark.parametrize("name, value", [
    ("seed", -1), ("batch_size", 0), ("accumulation_steps", 0), ("steps_per_execution", -1),
    ("epochs", 0), ("evaluate_every", 0), ("shots", 0), ("total_steps", 0), ("pictures_every", -2),
    ("save_steps", 0), ("save_minutes", -1.0), ("max_bad_percent", 101.0),
    ("validation_percent", 95), ("dataset", ""), ("strategy", "gpu"), ("cache", "ram"),
    ("crop", "cut"), ("resize", "pad"), ("crop_fraction", 0.9),
    ("color_jitter", -0.1), ("randaug_layers", -1), ("randaug_magnitude", -3),
    ("erasing_rate", 1.5), ("mixup_alpha", -0.1), ("cutmix_alpha", -1.0), ("dtype", "float99"),
    ("variant", "X/16"), ("num_heads", 5), ("num_layers", 0), ("classifier", "max"),
    ("positions", "rotary"), ("positions_at", "output"), ("num_registers", -1), ("gelu", "quick"),
    ("dropout_rate", 1.5), ("stochastic_depth_rate", 1.0), ("epsilon", -1e-6),
    ("layer_scale", -1.0), ("freeze", "blocks:3"), ("freeze", "head"), ("optimizer", "lion"),
    ("learning_rate", -1.0), ("learning_rate", float("nan")), ("layer_decay", 1.5),
    ("lr_schedule", "step"), ("warmup_steps", -1), ("weight_decay", -0.1), ("clip_norm", 0.0),
    ("ema_momentum", 1.0), ("label_smoothing", 1.0),
    ("loss", "hinge"), ("early_stopping", 0), ("early_stopping_metric", "f1"),
    ("class_weights", "equal"),
])  # fmt: skip
def test_each_field_is_checked(name, value):
    with pytest.raises(InputError, match=name):
        validate(config(**{name: value}))


def test_fields_that_do_not_fit_each_other():
    with pytest.raises(InputError, match=r"image_size=\(30, 48\), patch size 8"):
        validate(config(image_size=(30, 48)))
    with pytest.raises(InputError, match="warmup_steps=500"):
        validate(config(total_steps=500))
    with pytest.raises(InputError, match="layer_decay=0.5.*freeze=backbone"):
        validate(config(layer_decay=0.5, freeze="backbone"))
    with pytest.raises(InputError, match="pictures_every=1, variant=R50x1"):
        validate(config(variant="R50x1", pictures_every=1))
    with pytest.raises(InputError, match="crop_fraction=1.5"):
        validate(config(resize="crop", crop_fraction=1.5))
    with pytest.raises(InputError, match="init_from=None"):
        validate(config(variant="auto"))


def test_the_warmup_must_be_shorter_than_the_run():
    from_config.check_warmup(config(epochs=10, warmup_steps=69), 7)
    for fields in ({"epochs": 10, "warmup_steps": 70}, {"total_steps": 5, "warmup_steps": 5}):
        with pytest.raises(InputError, match="warmup_steps"):
            from_config.check_warmup(config(**fields), 7)


def test_weights_must_fit_the_model_and_a_started_run_does_not_need_them(tmp_path):
    path = tmp_path / "model.keras"
    vk.vit("Ti/8", image_size=64, num_classes=3, **TINY).save(path)
    validate(config(init_from=str(path)))
    for name, value in (("num_heads", 4), ("hidden_dim", 48), ("num_layers", 3), ("mlp_dim", 24)):
        with pytest.raises(InputError, match=f"{name}={value} in the model, .* in {path}"):
            validate(config(init_from=str(path), **{name: value}))
    with pytest.raises(InputError, match="hidden_dim=24"):
        validate(config(variant="auto", init_from=str(path)))
    auto = configs.base_config()
    auto.update(variant="auto", init_from=str(path), image_size=(40, 40))
    validate(auto)
    auto.image_size = (41, 40)
    with pytest.raises(InputError, match=r"image_size=\(41, 40\)"):
        validate(auto)
    with pytest.raises(InputError, match="nowhere"):
        validate(config(init_from="nowhere"))
    run = RunDirectory(tmp_path / "run")
    state = run.path / "state" / "step-000000001"
    state.mkdir(parents=True)
    (state / "state.json").write_text("{}")
    validate(config(init_from="nowhere"), run)


def test_validation_runs_no_tensorflow_op(tmp_path):
    vk.vit("Ti/8", image_size=32, num_classes=3, **TINY).save(tmp_path / "model.keras")
    code = """
import sys
import tensorflow as tf
from vitkeras import configs
from vitkeras.cli.config_validation import validate
config = configs.base_config()
config.update(variant="auto", image_size=(32, 32), init_from=sys.argv[1], layer_decay=0.5)
validate(config)
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
"""
    process = python("-c", code, tmp_path / "model.keras")
    assert process.returncode == 0, process.stderr  # the last line fails after any op
