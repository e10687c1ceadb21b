"""What the README shows is run as it is written."""

import re

import keras
import pytest
from conftest import ROOT, photo, python

import vitkeras as vk

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.slow
def test_the_ten_lines_run(tmp_path):
    code = BLOCKS[0]
    assert len([line for line in code.splitlines() if line.strip() not in ("", ")")]) <= 13
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            photo(60 + i, 80, seed=i).save(tmp_path / "photos" / name / f"{i}.jpg")
    (tmp_path / "runs/earlier").mkdir(parents=True)
    earlier = vk.vit("Ti/16", image_size=(64, 96), num_classes=5)
    earlier.save(tmp_path / "runs/earlier/best.keras")
    process = python("-c", f"import os; os.chdir({str(tmp_path)!r})\n{code}")
    assert process.returncode == 0, process.stderr
    model = keras.saving.load_model(tmp_path / "photos.keras")
    assert model.output_shape == (None, 2)


@pytest.mark.slow
def test_the_lines_on_weights_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vk.save_weights(vk.vit("B/16", image_size=224, num_classes=1000), "B_16.npz")
    with pytest.warns(UserWarning, match="all zeros"):
        exec(BLOCKS[1], {"vk": vk})
    assert len(BLOCKS) == 2
    back = vk.from_pretrained("mine_hf", num_classes=2)
    assert back.count_params() == vk.from_pretrained("mine.npz", num_classes=2).count_params()


def test_the_map_names_every_room():
    rooms = {p.name for p in (ROOT / "vitkeras").iterdir() if p.name[0] not in "_."}
    listed = set(re.findall(r"^  (\w+(?:\.py|/)) ", README, re.M))
    assert {room if room.endswith(".py") else f"{room}/" for room in rooms} - {
        "errors.py"
    } == listed
