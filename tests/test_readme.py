"""The code in the README runs as it is written."""

import json
import re

import keras
import numpy as np
import pytest
from helpers.images import photo
from helpers.processes import ROOT, command

import vitkeras as vk

README = (ROOT / "README.md").read_text()
PREDICT, FINETUNE = re.findall(r"```python\n(.*?)```", README, re.S)


def test_predicting_with_published_weights(tmp_path, monkeypatch, capsys):
    """The two downloads are replaced by files of the same format."""
    monkeypatch.chdir(tmp_path)
    model = vk.vit("Ti/16", image_size=48, num_layers=1)
    head = np.random.default_rng(0).normal(size=(192, 1000))
    model.get_layer("head").kernel.assign(head)
    vk.save_weights(model, "published.npz")
    names = {str(i): [f"n{i}", f"class {i}"] for i in range(1000)}
    (tmp_path / "names.json").write_text(json.dumps(names))
    photo(60, 80, seed=1).save("photo.jpg")
    urls = []

    def get_file(fname=None, origin=None, **options):
        urls.append(origin)
        return "published.npz" if origin.endswith(".npz") else "names.json"

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    utils = "keras.src.applications.imagenet_utils"
    monkeypatch.setattr(f"{utils}.file_utils.get_file", get_file)
    monkeypatch.setattr(f"{utils}.CLASS_INDEX", None)
    exec(PREDICT, {})
    assert urls[0].startswith("https://storage.googleapis.com/vit_models/") and len(urls) == 2
    pixels = keras.utils.img_to_array(keras.utils.load_img("photo.jpg", target_size=(48, 48)))
    best = np.argmax(model(pixels[None])[0])
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"[[('n{best}', 'class {best}', ")
    assert len([line for line in PREDICT.splitlines() if line]) == 7  # two imports, five lines


@pytest.mark.filterwarnings("ignore:.shuffle=True. was passed")  # Keras, for any data set
@pytest.mark.slow
def test_fine_tuning_with_plain_keras_from_the_run_of_the_readme(tmp_path, monkeypatch, data_dir):
    monkeypatch.chdir(tmp_path)
    flags = re.search(r"vitkeras train (--config=digits --workdir=runs/digits)\n", README)[1]
    shortened = ("--smoke", f"--config.data_dir={data_dir}")
    code, _, log = command("train", *flags.split(), *shortened)
    assert code == 0, log
    for split in ("train", "test"):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(6):
                path = tmp_path / "photos" / split / name / f"{i}.jpg"
                photo(60 + i, 80, seed=10 * label + i).save(path)
    exec(FINETUNE, {})
    model = keras.saving.load_model("photos.keras")
    assert model.output_shape == (None, 2) and model.config.image_size == (64, 64)


def test_links_and_lines():
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "saved_models/README.md"]
    for path in [*documents, *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path}: {target}"
    lines = README.splitlines()
    assert len(lines) < 200 and max(map(len, lines)) <= 110


def test_the_layout_in_contributing_is_complete():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = set(re.findall(r"^  (\w+(?:\.py|/)) ", text, re.M))
    found = {p.name for p in (ROOT / "vitkeras").iterdir() if p.suffix == ".py"}
    found |= {f"{p.name}/" for p in (ROOT / "vitkeras").iterdir() if (p / "__init__.py").exists()}
    assert listed == found


@pytest.mark.parametrize("kind", ["main", "test"])
def test_commands_can_be_extracted_by_the_continuous_integration(kind):
    assert re.search(rf"<!-- {kind} command -->\n```\n.+?\n```\n", README, re.S)
