"""What a config builds."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers.models import TINY
from helpers.processes import command
from sklearn.utils.class_weight import compute_class_weight

import vitkeras as vk
from vitkeras import configs
from vitkeras.cli import from_config
from vitkeras.errors import InputError
from vitkeras.models.resnet import build_resnet


def test_a_run_ends_with_its_last_step_in_a_complete_epoch():
    config = configs.base_config()
    assert from_config.run_length(config, 7) == (700, 100)
    config.total_steps = 15
    assert from_config.run_length(config, 7) == (15, 3)
    config.total_steps = 14
    assert from_config.run_length(config, 7) == (14, 2)


def test_sigmoid_scores_start_as_1_over_the_number_of_classes():
    config = configs.base_config()
    from_config.shrink(config)
    config.loss = "sigmoid"
    model = from_config.build_model(config, 10)
    scores = keras.ops.sigmoid(model(np.zeros((1, *config.image_size, 3))))
    np.testing.assert_allclose(scores, np.full((1, 10), 0.1), rtol=1e-6)
    from_config.compile_model(model, config, 4, [1.0] * 9 + [2.0])
    assert type(model.loss).__name__ == "SmoothedSigmoidCrossEntropy"
    assert model.loss.class_weights[8:] == [1, 2]
    assert from_config.build_model(config, 1).get_layer("head").bias.numpy() == [0]


def test_class_weights_are_balanced_over_the_training_split(photos, data_dir):
    config = configs.base_config()
    config.update(dataset=f"folder:{photos}", class_weights="balanced")
    source = from_config.open_source(config)
    labels = source.labels("train")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert len(set(expected.tolist())) == 2  # a file of one class cannot be decoded
    np.testing.assert_allclose(from_config.class_weights(config, source), expected)
    config.class_weights = None
    assert from_config.class_weights(config, source) is None
    config.update(dataset="digits", data_dir=data_dir, class_weights="balanced", shots=3)
    assert from_config.class_weights(config, from_config.open_source(config)) is None


def test_too_many_bad_images_are_refused():
    bad = [(f"bee/{i}.jpg", "the file is empty") for i in range(12)]
    from_config.check_bad_images(bad, 1188, 1.0)  # 1 % of 1,200
    from_config.check_bad_images(bad[:10], 5, 1.0)
    from_config.check_bad_images(bad, 5, 100.0)
    from_config.check_bad_images([], 5, 1.0)
    with pytest.raises(InputError, match=r"12 of 1199 images \(1.0 %\), such as bee/0.jpg: the f"):
        from_config.check_bad_images(bad, 1187, 1.0)


def test_smoke_keeps_what_a_config_chooses():
    config = configs.base_config()
    config.update(shots=1, freeze="blocks:7", total_steps=9_999, layer_decay=0.75)
    from_config.shrink(config)
    assert (config.shots, config.freeze, config.total_steps) == (8, "blocks:1", 4)
    config = configs.base_config()
    config.freeze = "backbone"
    from_config.shrink(config)
    assert (config.shots, config.freeze, config.total_steps) == (None, "backbone", None)


@pytest.mark.parametrize("layer_decay, kind", [(1.0, "Momentum"), (0.75, "LayerwiseMomentum")])
def test_layer_decay_reaches_the_optimizer(layer_decay, kind):
    config = configs.base_config()
    from_config.shrink(config)
    config.update(optimizer="sgd", weight_decay=0.0, layer_decay=layer_decay)
    model = from_config.build_model(config, 10)
    from_config.compile_model(model, config, 4)
    assert type(model.optimizer).__name__ == kind
    assert getattr(model.optimizer, "layer_decay", 1.0) == layer_decay


def test_a_folder_that_is_named_without_its_prefix(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    flags = ("--config=folder", f"--config.dataset={photos.name}", f"--workdir={tmp_path / 'run'}")
    code, _, error = command("train", *flags)
    assert code == 2 and f"folder:{photos.name}" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_auto_takes_the_architecture_of_a_file_and_pixels(kind, tmp_path):
    options = {"num_classes": 3, "include_rescaling": False}
    if kind == "vit":
        saved = vk.vit("Ti/8", image_size=16, pre_logits=True, **TINY, **options)
    else:
        saved = build_resnet(vk.ResNetConfig((1, 1), image_size=16, **options))
    saved.save(tmp_path / "model.keras")
    config = configs.base_config()
    config.update(variant="auto", init_from=str(tmp_path / "model.keras"), image_size=(24, 24))
    model = from_config.build_model(config, 5)
    expected = {"image_size": (24, 24), "num_classes": 5, "include_rescaling": True}
    expected |= {"pre_logits": False} if kind == "vit" else {}
    assert model.config == dataclasses.replace(saved.config, **expected)
    for weight, original in zip(model.weights, saved.weights, strict=False):
        if "head" not in weight.path and weight.shape == original.shape:
            np.testing.assert_array_equal(weight, original)
