"""The command `explain`, and the pictures in its documentation."""

import base64
import io
import json
import re

import numpy as np
import pytest
from helpers.html_pages import Page
from helpers.images import photo
from helpers.models import TINY, make
from helpers.processes import ROOT, command, python
from PIL import Image

import vitkeras as vk
from vitkeras import interpret
from vitkeras.data import Preprocessing
from vitkeras.io.run_directory import RunDirectory
from vitkeras.models.config import ResNetConfig
from vitkeras.models.resnet import build_resnet

NAMES = ["ant", "bee", "cow <&>"]


def explain(*arguments):
    code, out, error = command("explain", *arguments)
    assert code == 0, error
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three photos of different sizes, one gray."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / "one.png", folder / "two.jpg", folder / "<three> {x}.png"]
    for i, (path, mode) in enumerate(zip(paths, ("RGB", "RGB", "L"), strict=True)):
        photo(50 + 10 * i, 80, mode, seed=i).save(path)
    return paths


@pytest.fixture(scope="module")
def explained(files, tmp_path_factory):
    """A run directory, its model and preprocessing, and the folder that the command wrote."""
    folder = tmp_path_factory.mktemp("explained")
    run, model = RunDirectory(folder / "run"), make(image_size=(32, 48), num_registers=1)
    preprocessing = Preprocessing((32, 48), antialias=True)
    run.create({"seed": 0}, NAMES, preprocessing.to_json(), {})
    run.save_model(model, "best")
    result = explain(f"--workdir={run.path}", f"--output={folder / 'out'}", "--block=1", *files)
    assert result["images"] == 3
    return run, model, preprocessing, folder / "out"


def test_the_page_has_all_figures_and_loads_nothing(explained):
    _, model, _, out = explained
    names = {path.name for path in out.iterdir()}
    single = {"components.png", "positions.png", "distances.png", "norms.png"}
    each = {f"{kind}_{i:02d}.png" for kind in ("rollout", "heads", "evidence", "norms")
            for i in (1, 2, 3)}  # fmt: skip
    assert names == single | each | {"arrays.npz", "index.html"}
    text = (out / "index.html").read_text()
    page = Page(text)
    markup = re.sub(r"base64,[\w+/=]+", "", text)
    assert "http" not in markup and "<script" not in markup and "url(" not in markup
    contents = [base64.b64decode(src.partition("base64,")[2]) for _, src in page.images]
    assert sorted(contents) == sorted((out / name).read_bytes() for name in single | each)
    for (alt, _), content in zip(page.images, contents, strict=True):
        assert alt.endswith(f"Model: run ({model.name}).") and "et al. 20" in alt
        assert re.search(r"unit|pixels|percent|%", alt)
        picture = Image.open(io.BytesIO(content)).convert("L")
        assert picture.width < 1300 and np.asarray(picture).std() > 10, alt
    for letter in "abcdefg":
        assert f"({letter}) " in page.text
    assert "<three> {x}.png: evidence for" in page.text
    assert "bilinear resize to 32x48 (height x width) with antialias" in page.text
    assert "1 register, 4x6 patches" in page.text
    assert "in block 1 of 2, in percent; query: class token" in page.text


def test_the_arrays_are_those_of_interpret_on_the_images_of_the_run(explained, files):
    _, model, preprocessing, out = explained
    images = np.stack([preprocessing.evaluation_image(p.read_bytes()).numpy() for p in files])
    classes = np.argmax(model.predict(images, verbose=0), axis=1)
    expected = {
        "filters": interpret.first_filters(model),
        "position_similarity": interpret.position_similarity(model),
        "attention_distances": interpret.attention_distances(model, images),
        "uniform_distance": interpret.uniform_distance((4, 6), 8),
        "rollout": interpret.attention_rollout(model, images),
        "head_maps": interpret.head_maps(model, images, 0),
        "class_evidence": interpret.class_evidence(model, images, classes),
        "classes": classes,
        "token_norms": interpret.token_norms(model, images),
    }
    with np.load(out / "arrays.npz", allow_pickle=False) as arrays:
        for name, value in expected.items():
            np.testing.assert_allclose(arrays[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        components = {f"filters_{name}" for name in interpret.PrincipalComponents._fields}
        assert set(arrays) == {*expected, *components, "head_maps_block", "logits"}
        assert arrays["head_maps_block"] == 1
    page = Page((out / "index.html").read_text())
    for path, index in zip(files, classes, strict=True):
        assert f"{path.name}: evidence for {NAMES[index]} (the predicted class)" in page.text


def test_a_weight_file_without_head_and_class_token_at_another_size(files, tmp_path):
    make(image_size=(32, 48), classifier="gap", include_top=False).save(tmp_path / "model.keras")
    explain(
        f"--weights={tmp_path / 'model.keras'}", "--image_size=16,48",
        f"--output={tmp_path / 'out'}", files[0],
    )  # fmt: skip
    text = Page((tmp_path / "out/index.html").read_text()).text
    assert "no head and no classes" in text and "no standard deviation" in text
    assert "the mean of the patch tokens" in text and "(no class token)" in text
    assert "resize to 16x48 (height x width)" in text and "preprocessing is assumed" in text
    assert not list((tmp_path / "out").glob("evidence*"))
    with np.load(tmp_path / "out/arrays.npz") as arrays:
        assert arrays["rollout"].shape == (1, 2, 6)


def test_a_model_without_rescaling_is_given_the_same_pixels(explained, files, tmp_path):
    model = explained[1]
    unscaled = make(image_size=(32, 48), num_registers=1, include_rescaling=False)
    unscaled.set_weights(model.get_weights())
    unscaled.save(tmp_path / "model.keras")
    explain(f"--weights={tmp_path / 'model.keras'}", f"--output={tmp_path / 'out'}", files[0])
    images = Preprocessing((32, 48)).evaluation_image(files[0].read_bytes()).numpy()[None]
    with np.load(tmp_path / "out/arrays.npz") as arrays:
        expected = interpret.attention_rollout(model, images)
        np.testing.assert_allclose(arrays["rollout"], expected, rtol=1e-4, atol=1e-6)


def test_a_hybrid_with_a_new_head_and_no_positions_in_one_row(files, tmp_path):
    model = vk.vit("R+Ti/16", image_size=(32, 96), num_classes=4, positions="relative", **TINY)
    model.save(tmp_path / "model.keras")
    explain(f"--weights={tmp_path / 'model.keras'}", f"--output={tmp_path / 'out'}", files[1])
    text = Page((tmp_path / "out/index.html").read_text()).text
    assert "first convolution of the ResNet stem" in text and "adds no position embeddings" in text
    assert "All values are 0" in text and "1x3 patches" in text


def test_invalid_flags_and_images(explained, files, tmp_path):
    run, _, _, out = explained
    good = {"workdir": run.path, "output": tmp_path / "new"}
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    make(image_size=(32, 48), include_top=False).save(tmp_path / "features.keras")
    build_resnet(ResNetConfig((1,), image_size=32)).save(tmp_path / "resnet.keras")
    make(channels=1).save(tmp_path / "gray.keras")
    features, resnet, gray = (
        {"output": good["output"], "weights": tmp_path / f"{name}.keras"}
        for name in ("features", "resnet", "gray")
    )
    cases = [
        (good, [], "image file"),
        (good, [bad], str(bad)),
        (good, [tmp_path / "none.png"], str(tmp_path / "none.png")),
        (good | {"output": out}, files, "`output`"),
        (good | {"output": bad}, files, "`output`"),
        (good | {"output": bad / "x"}, files[:1], "`output`"),
        ({"workdir": run.path}, files, "`--output` is required"),
        ({"output": good["output"]}, files, "--workdir=DIR or --weights=FILE"),
        (good | resnet, files, "--workdir=DIR or --weights=FILE"),
        (good | {"workdir": tmp_path}, files, "`workdir`"),
        (resnet, files, "`model` must be made by `vit`"),
        (gray, files, "`weights`"),
        (good | {"block": 3}, files, "`block` must be an integer from 1 to 2"),
        (good | {"block": 0}, files, "`block` must be an integer from 1 to 2"),
        (good | {"class": "beee"}, files, 'Did you mean "bee"?'),
        (good | {"class": "3"}, files, "`class` must be a class name or an integer from 0 to 2"),
        (features | {"class": "1"}, files, "`class`"),
        (good | {"image_size": 32}, files, "`image_size` must not be given with --workdir"),
        (resnet | {"image_size": "a"}, files, "`image_size` must be a positive integer or a pair"),
    ]
    for flags, paths, words in cases:
        given = [f"--{name}={value}" for name, value in flags.items()]
        code, _, error = command("explain", *given, *paths)
        message = error.splitlines()[-1]
        assert code == 2 and message.startswith("error: ") and words in message, (flags, message)
    assert not (tmp_path / "new").exists()


def test_invalid_flags_are_reported_without_importing_tensorflow(files, tmp_path):
    code = (
        "import sys; from vitkeras.cli import main\n"
        "code = main.main(['explain', *sys.argv[1:]])\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    process = python("-c", code, f"--output={tmp_path / 'new'}", files[0])
    assert process.returncode == 2, process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: Either --workdir=DIR")


def test_the_pictures_in_the_docs_are_all_shown_and_small():
    folder = ROOT / "docs/explain"
    shown = re.findall(r"!\[.*?\]\((.*?)\)", (folder / "README.md").read_text())
    assert sorted(shown) == sorted(p.name for p in folder.iterdir() if p.suffix != ".md")
    assert sum((folder / name).stat().st_size for name in shown) < 400_000
