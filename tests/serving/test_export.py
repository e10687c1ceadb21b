"""Options, versions and locks of exports, and exports that are killed."""

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.exports import CLASS_NAMES, JPEG, PREPROCESSING, SIZE
from helpers.models import TINY, make
from helpers.processes import ROOT

import vitkeras as vk
from vitkeras import serving
from vitkeras.errors import InputError
from vitkeras.io.locks import exclusive_lock
from vitkeras.models.config import ResNetConfig
from vitkeras.models.resnet import build_resnet
from vitkeras.serving import export, model_card

SERVER_FILES = {"models.config", "batching_parameters.txt", "monitoring.config", ".lock"}


def answer_of_an_export(folder):
    keras.utils.set_random_seed(0)
    exported = make(image_size=SIZE, dtype="float32", num_classes=len(CLASS_NAMES))
    path = serving.export_saved_model(exported, PREPROCESSING, CLASS_NAMES, folder)
    return tf.saved_model.load(path).signatures["serving_default"](tf.constant([JPEG]))


@pytest.mark.slow
def test_a_global_setting_changes_no_answer(tmp_path):
    expected = answer_of_an_export(tmp_path / "default")
    for setting in ("channels_first", "float64", "float16"):
        try:
            if setting == "channels_first":
                keras.config.set_image_data_format(setting)
            else:
                keras.config.set_floatx(setting)
            actual = answer_of_an_export(tmp_path / setting)
        finally:
            keras.config.set_image_data_format("channels_last")
            keras.config.set_floatx("float32")
        for name, value in expected.items():
            np.testing.assert_array_equal(actual[name], value, err_msg=f"{setting}: {name}")


@pytest.mark.slow
def test_options(model, tmp_path, monkeypatch):
    messages = []  # not `caplog`: TensorFlow resets the level of the logger
    monkeypatch.setattr(export.logging, "info", lambda text, *args: messages.append(text % args))
    folder = serving.export_saved_model(
        model, PREPROCESSING, ["å", "b|c", *CLASS_NAMES[2:]], tmp_path / "half", top=9,
        compute_dtype="mixed_bfloat16", feature_layers=[0, -1], rows={"data": "none"},
    )  # fmt: skip
    assert re.search(r"probabilities \d\.\de-\d+, features \d\.\de-\d+", messages[-1])
    loaded = tf.saved_model.load(folder)
    assert set(loaded.signatures) == {
        "serving_default", "pixels", "pixels_float", "features", "feature_maps",
    }  # fmt: skip
    maps = loaded.signatures["feature_maps"](tf.constant([b"", JPEG]))
    assert maps.pop("valid").numpy().tolist() == [False, True]
    expected = vk.features(model, [0, 1])(PREPROCESSING.evaluation_image(JPEG)[None])
    assert set(maps) == set(expected) and len(expected) == 4
    for name, value in expected.items():
        assert not np.any(maps[name][0])
        scale = np.abs(value).max()
        assert 1e-6 < np.abs(maps[name][1] - value[0]).max() / scale < 5e-2, name
    answer = loaded.signatures["serving_default"](tf.constant([JPEG]))
    assert {key: value.dtype.name for key, value in answer.items()} == {
        "classes": "string", "scores": "float32", "label_ids": "int32",
        "probabilities": "float32", "valid": "bool",
    }  # fmt: skip
    assert loaded.signatures["features"](tf.constant([JPEG]))["features"].dtype == tf.float32
    assert answer["scores"].shape == (1, 7) and "å".encode() in answer["classes"][0].numpy()
    exact = tf.nn.softmax(model(PREPROCESSING.evaluation_image(JPEG)[None]))
    assert 1e-6 < np.abs(answer["probabilities"] - exact).max() < 2e-2
    card = (folder / "model_card.md").read_text()
    assert "| data | none |" in card and "bfloat16; outputs are float32" in card
    assert "| `feature_maps` | `image_bytes` | `block_00` `(b, 2, 3, 24)`" in card
    assert "`xla`" not in card and "å, b|c, class 2" in card


def test_names_are_escaped_in_the_model_card(model):
    names = ["a\nb", "<img src=x>", "c\x1b[31m", "d|e", *CLASS_NAMES[4:]]
    rows = {"data": "folder\n| x |"}
    card = model_card.format_model_card(
        model, PREPROCESSING, names, 5, "float32", {}, False, [], rows
    )
    assert r"a\nb, &lt;img src=x&gt;, c\x1b[31m, d|e, class 4" in card
    assert r"| data | folder\n\| x \| |" in card and "\x1b" not in card


def test_with_compute_dtype(model):
    half = export.with_compute_dtype(model, "mixed_bfloat16")
    dtypes = {layer.name: layer.compute_dtype for layer in half.layers}
    assert dtypes["rescaling"] == dtypes["head"] == "float32" and dtypes["block_00"] == "bfloat16"
    restored = export.with_compute_dtype(half, "float32")
    images = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3))
    np.testing.assert_array_equal(restored(images), model(images))
    assert np.abs(half(images) - model(images)).max() > 1e-6
    resnet = build_resnet(ResNetConfig((1, 1), image_size=32, num_classes=2))
    half = export.with_compute_dtype(resnet, "mixed_bfloat16")
    assert half.get_layer("root").compute_dtype == "bfloat16"
    for actual, expected in zip(half.weights, resnet.weights, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_invalid_arguments_are_refused(model, exported, tmp_path):
    base = exported.parent

    def refuse(match, base=base, model=model, **arguments):
        before = set(base.rglob("*")) if base != "gs://bucket/half" else None
        with pytest.raises(InputError, match=match):
            serving.export_saved_model(model, PREPROCESSING, CLASS_NAMES, base, **arguments)
        assert before is None or set(base.rglob("*")) == before

    refuse("`top`.*top=0", top=0)
    refuse("`compute_dtype`.*float16", compute_dtype="float16")
    refuse("`version`.*version=0", version=0)
    refuse("`version`.*version=1, .*tiny/1. Next free: 2", version=1)
    refuse("`base`.*gs://bucket/half", base="gs://bucket/half")
    (tmp_path / "file").write_text("")
    refuse("`base`.*file", base=tmp_path / "file")
    new = tmp_path / "new"
    refuse("`num_classes`.*num_classes=3", base=new, model=make("Ti/16", SIZE, 3))
    refuse("`image_size`.*16, 32", base=new, model=make("Ti/16", (16, 32), 7))
    with_range = make("Ti/16", SIZE, 7, include_rescaling=False)
    refuse("`include_rescaling`.*False", base=new, model=with_range)
    features = vk.vit("Ti/16", image_size=SIZE, include_top=False, **TINY)
    refuse("`num_classes`.*None", base=new, model=features)
    assert not new.exists()


@pytest.fixture
def unverified(monkeypatch):
    """Replaces the verification, which takes a fresh process."""
    zero = {"probabilities": 0.0, "features": 0.0}
    monkeypatch.setattr(export, "verify_export", lambda *_: zero)


@pytest.mark.parametrize("name", ["photos[2]", "what?", "a*b", "a\\b"])
def test_names_that_tensorflow_takes_for_a_pattern_are_refused(name, model, tmp_path):
    with pytest.raises(InputError, match=r"none of the characters \* \? \["):
        serving.export_saved_model(model, PREPROCESSING, CLASS_NAMES, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_exports_wait_for_each_other_and_remove_what_killed_ones_left(model, tmp_path, unverified):
    base = tmp_path / "tiny"
    for name in (".3.1", ".models.config.2", "3"):
        (base / name / "variables").mkdir(parents=True)
        (base / name / "variables/x").write_text("")
    (base / "models.config").write_text("# edited\n")
    result = []

    def run():
        result.append(serving.export_saved_model(model, PREPROCESSING, CLASS_NAMES, base))

    thread = threading.Thread(target=run)
    with exclusive_lock(base):
        thread.start()
        thread.join(1.0)
        assert thread.is_alive() and not result
        (base / "4").mkdir()
        (base / "4/saved_model.pb").write_text("")
    thread.join()
    assert result == [base / "5"] and serving.next_version(base) == 6
    assert {path.name for path in base.iterdir()} == {"3", "4", "5", *SERVER_FILES}
    assert (base / "4/saved_model.pb").read_text() == ""
    assert (base / "models.config").read_text() == "# edited\n"
    assert (base / "5").stat().st_mode & 0o777 == base.stat().st_mode & 0o777
    loaded = tf.saved_model.load(base / "5")
    assert loaded.signatures["serving_default"](tf.constant([JPEG]))["valid"].numpy().all()


def test_a_version_that_appears_meanwhile_is_not_overwritten(model, tmp_path, monkeypatch):
    base = tmp_path / "tiny"

    def verify(*_):  # a program without the lock, such as cp
        (base / "1").mkdir()
        return {"probabilities": 0.0, "features": 0.0}

    monkeypatch.setattr(export, "verify_export", verify)
    with pytest.raises(InputError, match="`version`.*version=1, .*tiny/1. Next free: 2"):
        serving.export_saved_model(model, PREPROCESSING, CLASS_NAMES, base)
    assert {path.name for path in base.iterdir()} == {"1", ".lock"}
    assert not list((base / "1").iterdir())


EXPORT = """
import sys, keras
from vitkeras import data, serving
model = keras.saving.load_model(sys.argv[1], compile=False)
preprocessing = data.Preprocessing((32, 48))
print("ready", flush=True)
folder = serving.export_saved_model(model, preprocessing, list("abcdefg"), sys.argv[2])
print(folder, flush=True)
"""


def start_export(model_file, base):
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORT, str(model_file), str(base)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.mark.slow
def test_killed_exports_leave_only_complete_versions(model, tmp_path):
    model.save(tmp_path / "model.keras")
    base, complete, num_stale = tmp_path / "tiny", {}, 0
    rng = random.Random(0)
    first = start_export(tmp_path / "model.keras", base)
    start = time.monotonic()
    assert first.communicate()[0] == f"{base}/1\n"
    duration = time.monotonic() - start
    for i in range(3):
        process = start_export(tmp_path / "model.keras", base)
        time.sleep((i + rng.random()) / 3 * 1.05 * duration)  # from early to late
        if i % 2:  # with the process that verifies
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.communicate()
        num_stale += bool(list(base.glob(".*.*")))
        for folder in (path for path in base.iterdir() if path.name.isdecimal()):
            if folder.name not in complete:
                answer = tf.saved_model.load(folder).signatures["serving_default"]
                assert answer(tf.constant([JPEG]))["valid"].numpy().all()
                complete[folder.name] = digest(folder)
            assert digest(folder) == complete[folder.name]
    print(f"3 kills: {len(complete) - 1} versions were complete, {num_stale} left staging files")
    assert num_stale  # otherwise no kill hit an export while it wrote
    last = start_export(tmp_path / "model.keras", base)
    assert last.communicate()[0] == f"{base}/{len(complete) + 1}\n"
    assert not list(base.glob(".*.*"))
