"""The page on what a trained ViT looks like inside, made as a user makes it."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY, photo, python
from PIL import Image
from test_analysis import make

import vitkeras as vk
from experiments import figures, page, sections
from vitkeras import analysis
from vitkeras.data import Preprocessing
from vitkeras.runs import RunDirectory

NAMES = ["ant", "bee", "cow <&>"]


def explain(*arguments):
    process = python("-m", "experiments.explain", *arguments)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three photos of different sizes, one gray."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / "one.png", folder / "two.jpg", folder / "<three> {x}.png"]
    for i, (path, mode) in enumerate(zip(paths, ("RGB", "RGB", "L"), strict=True)):
        photo(50 + 10 * i, 80, mode, seed=i).save(path)
    return paths


@pytest.fixture(scope="module")
def made(files, tmp_path_factory):
    """A run directory, its model, and what the command wrote of it."""
    folder = tmp_path_factory.mktemp("explained")
    run, model = RunDirectory(folder / "run"), make(image_size=(32, 48), num_registers=1)
    preprocessing = Preprocessing((32, 48), antialias=True)
    run.create({"seed": 0}, NAMES, preprocessing.to_json(), {})
    run.save_model(model, "best")
    result = explain(f"--workdir={run.path}", f"--output={folder / 'out'}", "--block=1", *files)
    assert result["images"] == 3
    return run, model, preprocessing, folder / "out"


class Page(HTMLParser):
    """Collects what a page shows and what it refers to."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.text, self.open, self.alone = [], "", [], {"meta", "img"}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in self.alone:
            self.open.append(tag)
        given = dict(attributes)
        assert set(given) <= {"lang", "charset", "name", "content", "alt", "src"}, given
        if tag == "img":
            self.pictures.append((given["alt"], given["src"]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_every_picture_and_needs_nothing_else(made, files):
    _, model, _, out = made
    names = {path.name for path in out.iterdir()}
    single = {"components.png", "positions.png", "distances.png", "norms.png"}
    each = {f"{kind}_{i:02d}.png" for kind in ("rollout", "heads", "evidence", "norms")
            for i in (1, 2, 3)}  # fmt: skip
    assert names == single | each | {"arrays.npz", "index.html"}
    text = (out / "index.html").read_text()
    shown = Page(text)
    assert "http" not in text and "<script" not in text and "url(" not in text
    contents = [base64.b64decode(src.partition("base64,")[2]) for _, src in shown.pictures]
    assert sorted(contents) == sorted((out / name).read_bytes() for name in single | each)
    for (alt, _), content in zip(shown.pictures, contents, strict=True):
        assert alt.endswith(f"Model: run ({model.name}).") and "et al. 20" in alt
        assert re.search(r"unit|pixels|percent|%", alt)
        picture = Image.open(io.BytesIO(content)).convert("L")
        assert picture.width < 1300 and np.asarray(picture).std() > 10, alt
    for part in "abcdefg":
        assert f"({part}) " in shown.text
    assert "<three> {x}.png: evidence for" in shown.text
    assert "32x48 pixels (height x width), bilinear, with antialias" in shown.text
    assert "1 register, 4x6 patches" in shown.text
    assert "attention of the class token in block 1 of 2" in shown.text


def test_the_arrays_are_those_of_analysis_on_the_runs_own_images(made, files):
    _, model, preprocessing, out = made
    images = np.stack([preprocessing.evaluation_image(p.read_bytes()).numpy() for p in files])
    classes = np.argmax(model.predict(images, verbose=0), axis=1)
    expected = {
        "filters": analysis.first_filters(model),
        "position_similarity": analysis.position_similarity(model),
        "attention_distances": analysis.attention_distances(model, images),
        "uniform_distance": analysis.uniform_distance((4, 6), 8),
        "rollout": analysis.attention_rollout(model, images),
        "head_maps": analysis.head_maps(model, images, 0),
        "class_evidence": analysis.class_evidence(model, images, classes),
        "classes": classes,
        "token_norms": analysis.token_norms(model, images),
    }
    with np.load(out / "arrays.npz", allow_pickle=False) as arrays:
        for name, value in expected.items():
            np.testing.assert_allclose(arrays[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        rest = {f"filters_{name}" for name in analysis.Components._fields}
        assert set(arrays) == {*expected, *rest, "head_maps_block", "logits"}
        assert arrays["head_maps_block"] == 1
    shown = Page((out / "index.html").read_text()).text
    for path, number in zip(files, classes, strict=True):
        assert f"{path.name}: evidence for {NAMES[number]} (the predicted class)" in shown


def test_a_weight_file_without_head_or_class_token_at_another_size(files, tmp_path):
    make(image_size=(32, 48), classifier="gap", include_top=False).save(tmp_path / "model.keras")
    explain(
        f"--weights={tmp_path / 'model.keras'}", "--image_size=16,48",
        f"--output={tmp_path / 'out'}", files[0],
    )  # fmt: skip
    shown = Page((tmp_path / "out/index.html").read_text()).text
    assert "no head and so no classes" in shown and "of one image there is no spread" in shown
    assert "the mean over the patches" in shown and "mean patch (no class token)" in shown
    assert "16x48 pixels" in shown and "as is assumed" in shown
    assert not list((tmp_path / "out").glob("evidence*"))
    with np.load(tmp_path / "out/arrays.npz") as arrays:
        assert arrays["rollout"].shape == (1, 2, 6)


def test_a_hybrid_with_a_fresh_head_and_no_positions_in_one_row(files, tmp_path):
    model = vk.vit(
        "R+Ti/16", image_size=(32, 96), num_classes=4, positions="relative", **TINY
    )  # fmt: skip
    model.save(tmp_path / "model.keras")
    explain(f"--weights={tmp_path / 'model.keras'}", f"--output={tmp_path / 'out'}", *files[:2])
    shown = Page((tmp_path / "out/index.html").read_text()).text
    assert "first convolution of the stem" in shown and "adds no positions" in shown
    assert "All is 0" in shown and "1x3 patches" in shown


def test_only_the_first_images_get_pictures_of_their_own(monkeypatch):
    monkeypatch.setattr(sections, "SHOWN", 1)
    made = sections.Sections("model", ["one", "two"], [np.zeros((9, 9, 3), np.uint8)])
    model, images = make(image_size=(32, 48)), np.zeros((2, 32, 48, 3), np.uint8)
    made.rollout(model, images, analysis.layout(model))
    assert list(made.files) == ["rollout_01.png"] and made.arrays["rollout"].shape == (2, 4, 6)


WRONG = """
import json, sys
from experiments import explain
from absl import flags
from absl.testing import flagsaver
from vitkeras.errors import InputError
flags.FLAGS(["explain", "--output=none"])
for given, paths in json.loads(sys.argv[1]):
    with flagsaver.flagsaver(**given):
        try:
            explain.main(paths)
        except InputError as error:
            print(error)
        else:
            print("nothing")
"""


def test_what_is_wrong_is_said_in_one_sentence(made, files, tmp_path):
    run, _, _, out = made
    good = {"workdir": str(run.path), "output": str(tmp_path / "new")}
    (tmp_path / "bad.png").write_bytes(b"no picture")
    make(image_size=(32, 48), include_top=False).save(tmp_path / "features.keras")
    vk.resnet("R50x1", image_size=32, num_classes=2).save(tmp_path / "resnet.keras")
    features, resnet = (
        {"output": good["output"], "weights": str(tmp_path / f"{name}.keras")}
        for name in ("features", "resnet")
    )
    cases = [
        (good, [], "Give at least one image"),
        (good, [tmp_path / "bad.png"], "whole JPEG, PNG, BMP or GIF"),
        (good, [tmp_path / "none.png"], "readable file"),
        (good | {"output": str(out)}, files, "empty or not there yet"),
        (good | {"output": str(tmp_path / "bad.png")}, files, "empty or not there yet"),
        (good | {"output": str(tmp_path / "bad.png" / "x")}, files[:1], "folder can be made"),
        ({"output": good["output"]}, files, "either --workdir=DIR or --weights=FILE"),
        (good | resnet, files, "either --workdir=DIR or --weights=FILE"),
        (good | {"workdir": str(tmp_path)}, files, "must be a run directory"),
        (resnet, files, "made by `vit`"),
        (good | {"block": 3}, files, "`block` must be a number from 1 to 2"),
        (good | {"block": 0}, files, "`block` must be a number from 1 to 2"),
        (good | {"class": "beee"}, files, 'Did you mean "bee"?'),
        (good | {"class": "3"}, files, "a class name or a number from 0 to 2"),
        (features | {"class": "1"}, files, "no head and so no classes"),
        (good | {"image_size": ["32"]}, files, "`image_size` is for --weights"),
        (resnet | {"image_size": ["a"]}, files, "side in pixels, or height,width"),
    ]
    given = [(flags, [str(path) for path in paths]) for flags, paths, _ in cases]
    process = python("-c", WRONG, json.dumps(given))
    assert process.returncode == 0, process.stderr
    messages = process.stdout.splitlines()
    for (flags, _, words), message in zip(cases, messages, strict=True):
        assert words in message, (flags, message)
    assert not (tmp_path / "new").exists()
    process = python("-m", "experiments.explain", f"--output={tmp_path / 'new'}", files[0])
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith("error: Give either")


def test_contours_of_what_is_the_same_everywhere_and_of_one_row():
    picture = np.zeros((20, 30, 3), np.uint8)
    for values in (np.ones((4, 4)), np.arange(5.0)[None], np.array([[1.0]])):
        png = figures.to_png(figures.over_image(picture, values, "title", "unit", "model"))
        assert png.startswith(b"\x89PNG")


def test_maps_of_some_positions_have_the_ends_among_them():
    assert figures.spread(5) == [0, 1, 2, 3, 4] and figures.spread(1) == [0]
    places = figures.spread(37)
    assert len(places) == figures.MAX_MAPS and (places[0], places[-1]) == (0, 36)


def test_what_stands_on_the_page_is_escaped():
    text = page.render("<b>", ["a & b"], [page.Section("<i>", "<u>", [('"q"', b"png")])])
    shown = Page(text)
    assert shown.open == [] and "<b>" in shown.text and "a & b" in shown.text
    assert shown.pictures[0][0] == '"q"'


def read_pictures(folder):
    """Returns {tag: [step, ...]} of the images in TensorBoard's files."""
    steps = {}
    for path in sorted(folder.rglob("events*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "images":
                    width, height, png = tf.make_ndarray(value.tensor)[:3]
                    assert Image.open(io.BytesIO(png)).size == (int(width), int(height))
                    steps.setdefault(value.tag, []).append(event.step)
    return steps


FIT = """
import sys, keras, numpy as np, tensorflow as tf
import vitkeras as vk
from experiments.pictures import AttentionPictures
replicas, folder = int(sys.argv[1]), sys.argv[2]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
devices = [f"CPU:{i}" for i in range(replicas)]
strategy = tf.distribute.MirroredStrategy(devices)
images = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
weights = []
for count in (0, 1):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = vk.vit("Ti/8", image_size=(32, 48), num_classes=3, dropout_rate=0.1,
            hidden_dim=24, mlp_dim=48, num_heads=3, num_layers=2)
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    drawn = AttentionPictures(images[:2], 2, folder)
    model.fit(images, np.arange(4) % 3, batch_size=2, epochs=3, verbose=0, shuffle=False,
        callbacks=[drawn] * count)
    weights.append(model.get_weights())
assert all(np.array_equal(*pair) for pair in zip(*weights, strict=True))
print(strategy.num_replicas_in_sync)
"""


@pytest.mark.parametrize("replicas", [1, 2])
def test_pictures_are_drawn_while_a_model_trains_and_change_nothing(replicas, tmp_path):
    process = python("-c", FIT, replicas, tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == [str(replicas)]
    tags = ["attention distance", *(f"attention rollout, image {i}" for i in (1, 2))]
    assert read_pictures(tmp_path) == {tag: [1, 2] for tag in tags}


@pytest.mark.parametrize("variant", ["Ti/4", "R50x1"])
def test_a_run_draws_pictures_of_its_validation_images(variant, tmp_path):
    process = python(
        "-m", "experiments.train", f"--config={ROOT / 'experiments/configs/digits.py'}",
        f"--workdir={tmp_path / 'run'}", f"--config.data_dir={tmp_path / 'data'}",
        "--config.pictures_every=2", f"--config.variant={variant}", "--smoke",
    )  # fmt: skip
    if variant == "R50x1":
        assert process.returncode == 2 and "made by `vit`" in process.stderr.splitlines()[-1]
        assert not (tmp_path / "run").exists()
        return
    assert process.returncode == 0, process.stderr
    tags = ["attention distance", *(f"attention rollout, image {i}" for i in (1, 2, 3, 4))]
    assert read_pictures(tmp_path / "run/tensorboard/pictures") == {tag: [1] for tag in tags}


def test_the_pictures_in_the_docs_are_of_modest_size():
    folder = ROOT / "docs/explain"
    shown = re.findall(r"!\[.*?\]\((.*?)\)", (folder / "README.md").read_text())
    assert sorted(shown) == sorted(p.name for p in folder.iterdir() if p.suffix != ".md")
    assert sum((folder / name).stat().st_size for name in shown) < 400_000
