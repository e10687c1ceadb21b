"""Hostile, damaged and foreign .keras files: refused before anything is built."""

import io
import json
import random
import zipfile

import h5py
import keras
import numpy as np
import pytest
from helpers.models import TINY

import vitkeras as vk
from vitkeras.errors import InputError
from vitkeras.io.keras_files import MEMBERS, load_keras_file, read_keras_config


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    vk.vit("Ti/4", image_size=8, num_classes=3, **TINY).save(path)
    return path


@pytest.fixture
def nothing_is_built(monkeypatch):
    def load_model(*args, **kwargs):
        raise AssertionError("Keras was called")

    monkeypatch.setattr(keras.saving, "load_model", load_model)


def rewrite(saved, path, config=None, weights=None, members=(), compression=zipfile.ZIP_STORED):
    """Writes a copy with functions applied to the JSON and to the HDF5 file, and more members."""
    with zipfile.ZipFile(saved) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    if config:
        description = json.loads(contents["config.json"])
        description = config(description) or description
        contents["config.json"] = json.dumps(description).encode()
    if weights:
        buffer = io.BytesIO(contents["model.weights.h5"])
        with h5py.File(buffer, "a") as file:
            weights(file)
        contents["model.weights.h5"] = buffer.getvalue()
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {**contents, **dict(members)}.items():
            if content is not None:
                archive.writestr(name, content)
    return path


def layer(description, name):
    layers = description["config"]["layers"]
    return next(each["config"] for each in layers if each["name"] == name)


def architecture(**changes):
    return lambda description: description["config"]["architecture"].update(changes)


def head(**changes):
    return lambda description: layer(description, "head").update(changes)


def replace_array(name, **options):
    def change(file):
        del file[name]
        file.create_dataset(name, **options)

    return change


def link_outside(file):
    del file[KERNEL]
    file[KERNEL] = h5py.ExternalLink("/etc/hostname", "x")


def replace_dtype(description):
    layer(description, "block_00")["dtype"] = {
        "module": "keras",
        "class_name": "QuantizedDTypePolicy",
        "config": {"mode": "int8", "source_name": "float32"},
        "registered_name": None,
    }


def insert_layer(description):
    dense = json.loads(json.dumps(description["config"]["layers"][-1]))
    description["config"]["layers"].append({**dense, "name": "second"})


def nest(description):
    nested = []
    for _ in range(500):
        nested = [nested]
    description["config"]["layers"] = nested


KERNEL = "layers/dense/vars/0"
HOSTILE = {
    "a head of 30 million units": ({"config": head(units=30_000_000)}, "head|units"),
    "the architecture of such a head": (
        {"config": architecture(num_classes=30_000_000)},
        "not the",
    ),
    "a billion layers": ({"config": architecture(num_layers=10**9)}, "not those"),
    "a table of positions": (
        {"config": architecture(positions="sincos_2d", image_size=[400_000, 400_000])},
        "not those",
    ),
    "a build shape": (
        {"config": lambda d: d["config"]["layers"][-1]["build_config"].update(
            input_shape=[None, 10**8])},
        "build_config",
    ),
    "an array that is declared only": (
        {"weights": replace_array(KERNEL, shape=(300_000_000,), dtype="f4", chunks=(2**20,))},
        "declares more",
    ),
    "a compressed array": (
        {"weights": replace_array(KERNEL, data=np.zeros((24, 3), "f4"), compression="gzip")},
        "declares more",
    ),
    "an array in another file": ({"weights": link_outside}, "links to"),
    "an array too many": (
        {"weights": lambda file: file.create_dataset("layers/more", data=np.zeros(3, "f4"))},
        "arrays",
    ),
    "assets": ({"members": {"assets/x": b"0" * 100}}, "members: assets/x"),
    "no weights": ({"members": {"model.weights.h5": None}}, "model.weights.h5"),
    "a compressed bomb": (
        {"members": {"model.weights.h5": bytes(2**27)}, "compression": zipfile.ZIP_DEFLATED},
        "declares 134,217,728 bytes",
    ),
    "much JSON": (
        {"members": {"metadata.json": b" " * 2**23}, "compression": zipfile.ZIP_DEFLATED},
        "metadata.json declares",
    ),
    "no HDF5": ({"members": {"model.weights.h5": b"PK"}}, "cannot be read"),
    "quantized": ({"config": replace_dtype}, "block_00|dtype"),
    "another layer": ({"config": insert_layer}, r"\(layers\)"),
    "nested lists": ({"config": nest}, "cannot be read|layers"),
    "another activation": ({"config": head(activation="softmax")}, "activation"),
    "another kind": ({"config": lambda d: d.update(registered_name="x>Y")}, "a x>Y"),
    "a list": ({"config": lambda d: [d]}, "cannot be read"),
    "another architecture": ({"config": architecture(type="X")}, "`type`"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_before_anything_is_built(
    name, saved, tmp_path, nothing_is_built
):
    options, message = HOSTILE[name]
    path = rewrite(saved, tmp_path / "model.keras", **options)
    with pytest.raises(InputError, match=message) as caught:
        load_keras_file(path)
    assert str(path) in str(caught.value) or name == "another architecture"
    with pytest.raises(InputError):
        vk.from_pretrained(path)


def test_foreign_models_are_refused(tmp_path, nothing_is_built):
    images = keras.Input((8, 8, 3))
    base = vk.vit("Ti/4", image_size=8, num_classes=3, **TINY)
    foreign = {
        "functional": keras.Model(images, keras.layers.Flatten()(images)),
        "sequential": keras.Sequential([images, keras.layers.Flatten()]),
        "derived": vk.Model(base.input, keras.layers.Dense(2)(base.get_layer("norm").output)),
    }
    for name, model in foreign.items():
        path = tmp_path / f"{name}.keras"
        model.save(path)
        for load in (vk.from_pretrained, read_keras_config):
            with pytest.raises(InputError, match="keras.saving.load_model"):
                load(path)


def test_recompressed_files_and_frozen_layers_are_kept(saved, tmp_path):
    model = keras.saving.load_model(saved)
    model.get_layer("block_00").trainable = False
    model.get_layer("head").kernel.assign(np.full((24, 3), 0.5))
    model.save(tmp_path / "frozen.keras")
    path = rewrite(
        tmp_path / "frozen.keras", tmp_path / "m.keras", compression=zipfile.ZIP_DEFLATED
    )
    loaded = load_keras_file(path)
    assert not loaded.get_layer("block_00").trainable and loaded.config == model.config
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def nodes(value, path=()):
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from nodes(value[key], (*path, key))


def test_mutated_descriptions_give_one_sentence_or_the_same_model(saved, tmp_path):
    with zipfile.ZipFile(saved) as archive:
        description = json.loads(archive.read("config.json"))
        assert set(archive.namelist()) == MEMBERS
    expected, rng = keras.saving.load_model(saved).get_weights(), random.Random(0)
    refused = 0
    for path in rng.sample(list(nodes(description)), 40):

        def mutate(description, path=path):
            value = rng.choice([None, -1, 1e300, "x", [], {}, [None], {"x": 1}, True, 10**30])
            if not path:
                return value
            for key in path[:-1]:
                description = description[key]
            description[path[-1]] = value

        mutated = rewrite(saved, tmp_path / "mutated.keras", config=mutate)
        try:
            weights = load_keras_file(mutated).get_weights()
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            for one, other in zip(weights, expected, strict=True):
                np.testing.assert_array_equal(one, other)
    assert refused > 20
