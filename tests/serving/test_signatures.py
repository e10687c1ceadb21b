"""Signatures of an export, through a C program that loads it as TF Serving does."""

import dataclasses
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from helpers.exports import (
    BAD,
    CLASS_NAMES,
    GOOD,
    JPEG,
    PNG,
    PNG_PIXELS,
    PREPROCESSING,
    SIZE,
    WEBP,
    black_png,
    check_bad,
    check_good,
    encode,
)
from helpers.images import photo
from tensorflow.python.tools import saved_model_cli

from vitkeras.data.decoding import MAX_PIXELS
from vitkeras.errors import InputError
from vitkeras.serving import replay
from vitkeras.serving.signatures import make_signatures

TF219_PYTHON = os.environ.get("TF219_PYTHON")


@pytest.mark.parametrize("signature", ["serving_default", "xla"])
def test_valid_and_invalid_files(exported, serve, live, signature):
    single = [[content] for content in (*GOOD.values(), *BAD.values())]
    between = [[JPEG, content, PNG] for content in BAD.values()]
    mixed = [x for pair in zip(BAD.values(), [*GOOD.values()] * 2, strict=True) for x in pair]
    answers, _ = serve(exported, signature, [*single, *between, mixed, [WEBP], []])
    assert [answer["code"] for answer in answers] == [0] * len(answers)
    single, between = answers[: len(single)], answers[len(single) : -3]
    mixed, webp, empty = answers[-3:]
    check_good(webp, 0, live(WEBP))
    for answer, content in zip(single, GOOD.values(), strict=False):
        check_good(answer, 0, live(content))
    for answer in single[len(GOOD) :]:
        check_bad(answer, 0)
    for answer in between:
        check_good(answer, 0, live(JPEG))
        check_bad(answer, 1)
        check_good(answer, 2, live(PNG))
    for i, content in enumerate([*GOOD.values()] * 2):
        check_bad(mixed, 2 * i)
        check_good(mixed, 2 * i + 1, live(content))
    shapes = {key: value.shape for key, value in empty.items() if key not in ("code", "message")}
    assert shapes == {
        "classes": (0, 5), "scores": (0, 5), "label_ids": (0, 5),
        "probabilities": (0, len(CLASS_NAMES)), "valid": (0,),
    }  # fmt: skip
    different = {tuple(answer["probabilities"][0].tolist()) for answer in single[: len(GOOD)]}
    assert len(different) == len(GOOD)


def test_wrong_dtypes_and_ranks_are_invalid_arguments(exported, serve):
    bytes_rule = (
        "`image_bytes` must be strings of shape (b,), each a complete JPEG, PNG or WebP file."
    )
    cases = [
        ("serving_default", np.zeros((2,), "f4"), "to be string but float is provided"),
        ("serving_default", np.array(JPEG, object), f"{bytes_rule} Received shape:] []"),
        ("features", np.array([[JPEG, PNG]], object), f"{bytes_rule} Received shape:] [1 2]"),
        ("xla", np.array([[JPEG], [PNG]], object), f"{bytes_rule} Received shape:] [2 1]"),
        ("pixels", np.zeros((1, 4, 4, 3), "f4"), "to be uint8 but float is provided"),
        ("pixels", np.zeros((4, 4, 3), "u1"), "`pixels` must be of shape (b, h, w, 3), values 0"),
        ("pixels", np.zeros((1, 4, 4, 1), "u1"), "Received shape:] [1 4 4 1]"),
        ("pixels_float", np.zeros((1, 4, 4, 3), "u1"), "to be float but uint8 is provided"),
        ("pixels_float", np.zeros((3,), "f4"), "Received shape:] [3]"),
    ]
    for signature in ("serving_default", "features", "xla", "pixels", "pixels_float"):
        mine = [(value, text) for name, value, text in cases if name == signature]
        answers, _ = serve(exported, signature, [value for value, _ in mine])
        for answer, (_, text) in zip(answers, mine, strict=True):
            assert answer["code"] == 3 and text in answer["message"], answer  # INVALID_ARGUMENT


def test_pixels_and_features(exported, serve, model, live):
    resized = PREPROCESSING.evaluation_image(PNG).numpy()  # of the model's size: not resized again
    for signature, dtype in (("pixels", "u1"), ("pixels_float", "f4")):
        requests = [np.stack([x, x]).astype(dtype) for x in (PNG_PIXELS, resized)]
        answers, _ = serve(exported, signature, [*requests, np.zeros((0, 5, 5, 3), dtype)])
        for answer in answers[:2]:
            for index in range(2):
                check_good(answer, index, live(PNG))
        assert answers[2]["probabilities"].shape == (0, len(CLASS_NAMES))
    with_nan = np.stack([PNG_PIXELS, PNG_PIXELS]).astype("f4")
    with_nan[0, 3, 4, 0] = np.nan
    (answer,), _ = serve(exported, "pixels_float", [with_nan])
    check_bad(answer, 0)
    check_good(answer, 1, live(PNG))

    (answer,), _ = serve(exported, "features", [[JPEG, b"not an image"]])
    images = PREPROCESSING.evaluation_image(JPEG)[None]
    expected = type(model)(model.input, model.get_layer("head").input)(images)[0]
    np.testing.assert_allclose(answer["features"][0], expected, atol=1e-5)
    assert answer["valid"].tolist() == [True, False] and not answer["features"][1].any()


def test_signatures_crop_as_evaluation_does(model, live):
    preprocessing = dataclasses.replace(PREPROCESSING, crop_fraction=0.875)
    functions = {
        name: tf.function(function, input_signature=[spec])
        for name, (function, spec) in make_signatures(
            model, preprocessing, CLASS_NAMES, 5, xla=False
        ).items()
    }  # fmt: skip

    def expected(content):
        images = preprocessing.evaluation_image(content)[None]
        return tf.nn.softmax(model(images, training=False))[0].numpy()

    def check(answer, *contents):
        for row, content in zip(answer["probabilities"], contents, strict=True):
            np.testing.assert_allclose(row, expected(content), atol=1e-5)

    long = encode("PNG", height=1, width=5000)
    contents = [*GOOD.values(), BAD["empty"], long]
    answer = functions["serving_default"](tf.constant(contents))
    assert answer["valid"].numpy().tolist() == [True] * len(GOOD) + [False, True]
    valid = {key: tf.boolean_mask(value, answer["valid"]) for key, value in answer.items()}
    check(valid, *GOOD.values(), long)
    assert np.abs(expected(PNG) - live(PNG)).max() > 1e-3
    for signature, dtype in (("pixels", "u1"), ("pixels_float", "f4")):
        pixels = np.stack([PNG_PIXELS, PNG_PIXELS]).astype(dtype)
        check(functions[signature](pixels), PNG, PNG)
        own_size = GOOD["PNG of the model's size"]
        check(functions[signature](np.asarray(photo(*SIZE))[None].astype(dtype)), own_size)
        assert functions[signature](pixels[:0])["probabilities"].shape == (0, len(CLASS_NAMES))
        with pytest.raises(tf.errors.InvalidArgumentError, match="non-zero size"):
            functions[signature](pixels[:, :0])


def test_sigmoid_scores_are_those_of_each_logit(model):
    signatures = make_signatures(model, PREPROCESSING, CLASS_NAMES, 3, False, (), "sigmoid")
    answer = signatures["serving_default"][0](tf.constant([JPEG, b""]))
    logits = model(PREPROCESSING.evaluation_image(JPEG)[None]).numpy().astype("float64")[0]
    expected = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(answer["probabilities"][0], expected, atol=1e-6)
    assert abs(expected.sum() - 1) > 0.1 and not answer["probabilities"][1].numpy().any()
    assert answer["label_ids"][0].numpy().tolist() == np.argsort(-expected)[:3].tolist()
    with pytest.raises(InputError, match="`activation` must be one of softmax, sigmoid"):
        make_signatures(model, PREPROCESSING, CLASS_NAMES, 3, False, (), "none")


def test_large_images_are_decoded_one_at_a_time(exported, serve):
    side = 6_000  # 108 MB decoded
    assert side**2 > MAX_PIXELS // 8
    png = black_png(side)
    answers, memory = serve(exported, "serving_default", [[black_png(10)] * 8, [png] * 8])
    assert all(answer["valid"].all() for answer in answers)
    before, _ = serve(exported, "serving_default", [[black_png(10)] * 8])[1][-1]
    assert memory[-1][1] - before < 1.6 * 108_000  # kB; two at a time would take 216,000


@pytest.mark.slow
def test_memory_is_constant_over_ten_thousand_mixed_requests(exported, serve):
    contents = [*GOOD.values(), *BAD.values()]
    rng = random.Random(0)
    requests = [rng.choices(contents, k=size) for size in (1, 2, 8, 32, 1, 3, 8, 1)]
    requests += [np.zeros((2,), "f4"), [[JPEG]]]
    answers, memory = serve(exported, "serving_default", requests, rounds=250, threads=4)
    assert [answer["code"] for answer in answers] == [0] * 8 + [3, 3]
    current = [kilobytes for kilobytes, _ in memory]
    print("memory in kB after each tenth:", current)
    assert len(current) == 10 and current[-1] - current[1] < 20_000


def test_saved_model_cli_shows_and_runs_an_export(exported, live, tmp_path, capsys):
    def run(function, **values):
        with flagsaver.flagsaver(dir=str(exported), tag_set="serve", **values):
            flags.FLAGS.mark_as_parsed()
            function()
            flags.FLAGS.unparse_flags()

    run(saved_model_cli.show, signature_def="serving_default")
    assert re.findall(r"puts\['(\w+)'\]", capsys.readouterr().out) == [
        "image_bytes", "classes", "label_ids", "probabilities", "scores", "valid"
    ]  # fmt: skip
    np.save(tmp_path / "pixels.npy", PNG_PIXELS[None])
    pixels = f"pixels={tmp_path}/pixels.npy"
    run(saved_model_cli.run, signature_def="pixels", inputs=pixels, outdir=str(tmp_path))
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy")[0], live(PNG), atol=1e-5)


@pytest.mark.skipif(not TF219_PYTHON, reason="TF219_PYTHON names no Python, as .ci/run does")
def test_outputs_are_the_same_under_tensorflow_2_19(exported, tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "samples")) as writer:
        for content in (*GOOD.values(), *BAD.values(), WEBP):
            writer.write(content)
    outputs = {}
    for name, python in {"old": TF219_PYTHON, "new": sys.executable}.items():
        process = subprocess.run(
            [python, "-P", replay.__file__, exported, tmp_path / "samples", tmp_path / name],
            capture_output=True, text=True,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr[-2000:]
        outputs[name] = np.load(tmp_path / f"{name}.npz")
    version = subprocess.check_output(
        [TF219_PYTHON, "-c", "import importlib.metadata as m; print(m.version('tensorflow_cpu'))"]
    )
    assert version.startswith(b"2.19.")
    assert set(outputs["old"]) == set(outputs["new"])
    for name, values in outputs["new"].items():
        old, new = (each[:-1] if len(each) > 1 else each for each in (outputs["old"][name], values))
        np.testing.assert_allclose(old, new, atol=1e-5, err_msg=name)
    expected = [True] * len(GOOD) + [False] * len(BAD)
    for name, webp in {"old": False, "new": True}.items():
        assert outputs[name]["serving_default/valid"].tolist() == [*expected, webp]
