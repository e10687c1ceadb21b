"""Names of images and classes with any character that a file name may have."""

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.images import photo
from helpers.processes import command

from vitkeras.interpret import figures
from vitkeras.io.figures import to_png
from vitkeras.preflight import report

CLASSES = [
    "$x^{$ [a]%s{0}",
    '=1,"q"\'s \\ back',
    "<script>alert(1)<_script>",
    "line\nbreak|*b* \x1b[31m",
    "\u732b \u0639\u0631\u0628\u064a e\u0301 \U0001f600",
]
FILES = [
    "a$b^{$.png", "x\ny.png", "q\"uo'te.png", "50%_{}.png", "<script>.png", "c,o;m.png",
    "=1+1.png", "b\\n\\$.png", "\U0001f600.png", "\u0639\u0631\u0628 \u732b e\u0301.png",
    "[ab]*?.png", "-dash.png",
]  # fmt: skip


@pytest.mark.parametrize("name", [*CLASSES, *FILES])
def test_figures_show_names_as_they_are(name):
    image, values = np.zeros((16, 16, 3), np.uint8), np.eye(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = figures.plot_heatmap(image, values, name, "label", "model")
        to_png(figure)
        drawn = figure._suptitle._preprocess_math(figure._suptitle.get_text())
        assert drawn == (f"{name}, model", False)
        report.draw_class_counts([name, "b"], np.array([2, 1]))
        report.draw_class_counts([name] * 60, np.arange(60))
        report.draw_batch(image[None], np.array([0]), [name])


@pytest.mark.slow
def test_commands_take_any_names(tmp_path):
    data = tmp_path / "data"
    for i, folder in enumerate(CLASSES):
        (data / folder).mkdir(parents=True)
        for j, file in enumerate(FILES):
            photo(16, 16, seed=20 * i + j).save(data / folder / file)
    (data / CLASSES[3] / "bad\nfile\t<b>.png").write_bytes(b"no image")
    config = [
        "--config=folder", f"--config.dataset=folder:{data}", "--config.image_size=(16, 16)",
        "--config.variant=Ti/8", "--config.hidden_dim=24", "--config.mlp_dim=48",
        "--config.num_heads=3", "--config.num_layers=2", "--config.batch_size=8",
        "--config.epochs=1", "--config.warmup_steps=0", "--config.pictures_every=1",
    ]  # fmt: skip
    run = f"--workdir={tmp_path / 'run'}"

    def result(*arguments):
        code, out, error = command(*arguments)
        assert code == 0 and "Traceback" not in error and "\x1b[31m" not in error, error
        return json.loads(out.splitlines()[-1]), error

    result("preflight", *config, f"--output={tmp_path / 'preflight.html'}")
    assert "<script>" not in (tmp_path / "preflight.html").read_text()
    result("train", *config, "--config.class_weights=balanced", run)
    bad = (tmp_path / "run" / "bad_images.txt").read_text().splitlines()
    assert len(bad) == 1 and "bad\\nfile\\t<b>.png\t" in bad[0]
    folder = Path(result("evaluate", run)[0]["output"])
    page = (folder / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;alert" in page and "\x1b" not in page
    with open(folder / "confusion.csv", newline="", encoding="utf-8") as file:
        assert next(csv.reader(file))[1:] == sorted(CLASSES)
    images = [str(data / CLASSES[0] / file) for file in FILES]
    predicted, error = result("predict", run, *images)
    assert [each["path"] for each in predicted["predictions"]] == images
    assert {entry["class"] for entry in predicted["predictions"][0]["top"]} == set(CLASSES)
    assert len(error.splitlines()) == len(images)
    for number, name in ((0, CLASSES[0]), (1, CLASSES[3])):
        folder = tmp_path / f"explained{number}"
        result("explain", run, f"--output={folder}", f"--class={name}", *images[4:6])
        page = (folder / "index.html").read_text()
        assert "<script>" not in page and "&lt;script&gt;.png" in page
        assert sorted(path.name for path in folder.glob("rollout_*"))[0] == "rollout_01.png"
    result("export", run, f"--output={tmp_path / 'exported' / 'model'}")
    card = next((tmp_path / "exported").rglob("model_card.md")).read_text()
    assert "<script>" not in card and "line\\nbreak|*b*" in card
    kept = [f"--config.init_from={tmp_path / 'run'}", "--config.keep_head"]
    _, error = result("train", *config, *kept, f"--workdir={tmp_path / 'kept'}")
    assert "The head is kept for 5 of 5 classes" in error
    probe = ["probe", f"--config.dataset=folder:{data}", "--config.image_size=(16, 16)"]
    result(*probe, f"--weights={tmp_path / 'run'}", f"--workdir={tmp_path / 'probe'}")
    exported, _ = result("predict", f"--saved_model={tmp_path / 'exported' / 'model'}", *images[:2])
    assert {entry["class"] for entry in exported["predictions"][0]["top"]} == set(CLASSES)
