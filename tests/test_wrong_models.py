"""Every public function that takes a model refuses what is not one of its kind in one sentence."""

import inspect

import keras
import numpy as np
import pytest
from helpers.models import SIZE, make

import vitkeras as vk
from vitkeras import evaluation, interpret, pretrained, serving, training
from vitkeras.data import Preprocessing
from vitkeras.errors import InputError
from vitkeras.evaluation import metrics
from vitkeras.interpret.report import Report
from vitkeras.models.config import model_config
from vitkeras.serving.export import with_compute_dtype
from vitkeras.training.loop import train

IMAGES = np.zeros((1, *SIZE, 3), np.uint8)
NOT_MODELS = ("none", "name", "list", "layer", "class", "config")
NOT_OURS = ("sequential", "empty", "wrapped", "plain", "two_inputs")


@pytest.fixture(scope="module")
def ours():
    return make()


@pytest.fixture(scope="module")
def wrong(ours):
    images = keras.Input((*SIZE, 3))
    logits = keras.layers.Dense(3)(keras.layers.Flatten()(images))
    return {
        "none": None,
        "name": "B/16",
        "list": [ours],
        "layer": ours.get_layer("block_00"),
        "class": vk.Model,
        "config": ours.config,
        "sequential": keras.Sequential([ours]),
        "empty": keras.Sequential(),
        "wrapped": keras.Model(images, ours(images)),
        "plain": keras.Model(images, logits),
        "two_inputs": keras.Model([ours.input, images], [ours.output, logits]),
    }


def weight_file(ours, folder):
    vk.save_weights(ours, folder / "weights.npz")
    return folder / "weights.npz"


def run_training(model, kept_model):
    train(None, model, kept_model, None, None, epochs=1, steps_per_epoch=1, batch_size=1)


#: By name of a function and its argument: a call with (what to pass, a model, a folder).
TAKES_OUR_MODEL = {
    "first_filters": lambda m, ours, folder: interpret.first_filters(m),
    "position_similarity": lambda m, ours, folder: interpret.position_similarity(m),
    "features": lambda m, ours, folder: vk.features(m),
    "token_layout": lambda m, ours, folder: interpret.token_layout(m),
    "attention_scores": lambda m, ours, folder: interpret.attention_scores(m, IMAGES),
    "head_maps": lambda m, ours, folder: interpret.head_maps(m, IMAGES),
    "attention_distances": lambda m, ours, folder: interpret.attention_distances(m, IMAGES),
    "attention_rollout": lambda m, ours, folder: interpret.attention_rollout(m, IMAGES),
    "class_evidence": lambda m, ours, folder: interpret.class_evidence(m, IMAGES, [0]),
    "token_norms": lambda m, ours, folder: interpret.token_norms(m, IMAGES),
    "Report": lambda m, ours, folder: Report(m, "name", ["a"], IMAGES, IMAGES),
    "load_weights": lambda m, ours, folder: vk.load_weights(m, weight_file(ours, folder)),
    "save_weights": lambda m, ours, folder: vk.save_weights(m, folder / "weights.npz"),
    "transfer_weights source": lambda m, ours, folder: vk.transfer_weights(m, ours),
    "transfer_weights target": lambda m, ours, folder: vk.transfer_weights(ours, m),
    "model_config": lambda m, ours, folder: model_config(m),
    "export_saved_model": lambda m, ours, folder: serving.export_saved_model(
        m, Preprocessing(SIZE), ["a", "b", "c"], folder / "export"
    ),
    "with_compute_dtype": lambda m, ours, folder: with_compute_dtype(m, "float32"),
}
TAKES_A_KERAS_MODEL = {
    "freeze": lambda m, ours, folder: vk.freeze(m, None),
    "make_evaluator": lambda m, ours, folder: metrics.make_evaluator(m),
    "make_example_evaluator": lambda m, ours, folder: metrics.make_example_evaluator(m),
    "train model": lambda m, ours, folder: run_training(m, ours),
    "train kept_model": lambda m, ours, folder: run_training(ours, m),
}
TAKES_A_PATH = {
    "from_pretrained": lambda m, ours, folder: vk.from_pretrained(m),
    "load_weights path": lambda m, ours, folder: vk.load_weights(ours, m),
    "read_config": lambda m, ours, folder: pretrained.loading.read_config(m),
}


@pytest.mark.parametrize("kind", [*NOT_MODELS, *NOT_OURS])
def test_what_is_not_a_model_of_the_right_kind_is_refused_in_one_sentence(
    kind, ours, wrong, tmp_path
):
    calls = {**TAKES_OUR_MODEL, **TAKES_A_PATH}
    calls |= TAKES_A_KERAS_MODEL if kind in NOT_MODELS else {}
    for name, call in calls.items():
        argument = "path" if name in TAKES_A_PATH else (name.split() + ["model"])[1]
        with pytest.raises(InputError, match=f"`{argument}` must be .*Received: ") as raised:
            call(wrong[kind], ours, tmp_path)
        assert "\n" not in str(raised.value), name
        if kind in ("sequential", "wrapped") and name in TAKES_OUR_MODEL:
            assert f"model.get_layer('{ours.name}')" in str(raised.value), name
    assert not (tmp_path / "export").exists()


def test_every_public_function_that_takes_a_model_is_tested():
    calls = {**TAKES_OUR_MODEL, **TAKES_A_KERAS_MODEL, **TAKES_A_PATH}
    tested = {name.split()[0] for name in calls}
    found = set()
    for module in (vk, evaluation, interpret, pretrained, serving, training, metrics):
        for name in getattr(module, "__all__", vars(module)):
            function = getattr(module, name)
            if name.startswith("_"):
                continue
            if inspect.isfunction(function) and function.__module__.startswith("vitkeras"):
                if {"model", "source", "target"} & set(inspect.signature(function).parameters):
                    found.add(name)
    assert len(found) > 12 and found - {"check_model"} <= tested


def test_an_evaluator_takes_models_with_one_output(ours, wrong):
    for name in ("sequential", "empty", "wrapped", "plain"):
        metrics.make_evaluator(wrong[name])
    with pytest.raises(InputError, match="`model` must have one output, the logits. .* 2 outputs"):
        metrics.make_evaluator(wrong["two_inputs"])
