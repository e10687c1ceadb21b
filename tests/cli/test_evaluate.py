"""The command `evaluate`: the report, the data of a run and another folder."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.html_pages import Page
from helpers.models import make
from helpers.processes import command, fail, succeed
from sklearn import metrics

from vitkeras import data
from vitkeras.io.run_directory import RunDirectory

SIZE = (16, 24)


def evaluate(run, *flags):
    return succeed("evaluate", f"--workdir={run}", *flags)


def refused(run, *flags):
    return fail("evaluate", f"--workdir={run}", *flags)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A run on the photos with models that were not trained."""
    directory = RunDirectory(tmp_path_factory.mktemp("evaluate") / "run")
    config = {
        "seed": 0, "dataset": f"folder:{photos}", "data_dir": None, "validation_percent": None,
        "shots": None,
    }  # fmt: skip
    source = data.open_source(config["dataset"])
    preprocessing = data.Preprocessing(SIZE).to_json()
    directory.create(config, source.class_names, preprocessing, source.fingerprint())
    for which, options in (("best", {}), ("last", {"num_registers": 1})):
        directory.save_model(make(image_size=SIZE, **options), which)
    return directory


@pytest.fixture(scope="module")
def other(photos, tmp_path_factory):
    """Another folder, without a class of the run and with a bad image."""
    folder = tmp_path_factory.mktemp("others") / "other photos"
    for name in ("bee", "cow"):
        shutil.copytree(photos / name, folder / name)
    return folder


def rows_of(result):
    return list(csv.DictReader(io.StringIO(read(result, "predictions.csv"), newline="")))


def read(result, name):
    return (Path(result["output"]) / name).read_bytes().decode()


def check(result, log, run, weights="best"):
    """Checks metrics against scikit-learn and the model, from the images in predictions.csv."""
    rows, names = rows_of(result), run.class_names
    model = run.load_model(weights)
    images = [
        data.Preprocessing(SIZE).evaluation_image(tf.io.read_file(row["path"])) for row in rows
    ]
    probabilities = tf.nn.softmax(tf.cast(model(np.stack(images)), "float64")).numpy()
    labels = [names.index(row["path"].split("/")[-2]) for row in rows]
    predicted = probabilities.argmax(1)
    assert [row["class"] for row in rows] == [names[i] for i in labels]
    assert [row["predicted"] for row in rows] == [names[i] for i in predicted]
    np.testing.assert_allclose(
        [float(row["probability"]) for row in rows], probabilities.max(1), atol=1e-5
    )
    assert result["examples"] == len(rows) and result["top_5_accuracy"] is None
    assert result["accuracy"] == metrics.accuracy_score(labels, predicted)
    np.testing.assert_allclose(
        result["loss"],
        metrics.log_loss(labels, probabilities, labels=range(3)),
        rtol=1e-4,
    )
    recall = metrics.recall_score(labels, predicted, labels=np.unique(labels), average="macro")
    np.testing.assert_allclose(result["macro_recall"], recall)
    assert f"{len(rows)} images: accuracy {result['accuracy']:.1%}" in log
    record = json.loads(read(result, "metrics.json"))
    assert record.items() >= {k: v for k, v in result.items() if k != "output"}.items()
    page = Page(read(result, "report.html"))
    mistakes = int((predicted != labels).sum())
    assert len(page.images) == 2 + min(mistakes, 24) and f" of {mistakes} mistakes" in page.text
    return page


def test_the_data_of_the_run(run, photos, tmp_path):
    result, log = evaluate(run.path, "--batch_size=2")
    check(result, log, run)
    assert (result["data"], result["split"], result["examples"]) == ("run", "test", 3)
    assert result["output"] == str(run.path / "evaluation/test") and "another folder" not in log
    train, log = evaluate(run.path, "--split=train", "--weights=last", "--batch_size=50")
    check(train, log, run, "last")
    assert train["examples"] == 29 and train["output"].endswith("evaluation/train-last")
    shutil.copytree(photos, tmp_path / "moved")
    page = run.path / "evaluation/test/report.html"
    page.write_text("an earlier page")
    moved, log = evaluate(run.path, f"--dataset=folder:{tmp_path}/moved")
    check(moved, log, run)
    assert page.read_text() != "an earlier page"
    assert moved["data"] == "run" and moved["loss"] == pytest.approx(result["loss"], rel=1e-5)
    assert {path.name for path in (run.path / "evaluation").iterdir()} == {"test", "train-last"}


def test_another_folder_is_evaluated_with_the_classes_of_the_run(run, other, tmp_path, monkeypatch):
    monkeypatch.chdir(other.parent)
    result, log = evaluate(run.path, "--dataset=folder:other photos/")
    page = check(result, log, run)
    assert (result["data"], result["split"], result["examples"]) == ("other", "all", 23)
    assert result["missing_classes"] == ["ant"] and result["dataset"] == f"folder:{other}"
    assert result["output"] == str(run.path / "evaluation/other photos-all")
    for words in ("evaluated as another folder", "1 of the 3 classes have no image: ant",
                  "left out: 1, such as bee/01.jpg (Invalid JPEG"):  # fmt: skip
        assert words in log and words in page.text
    splits = tmp_path / "splits"
    shutil.copytree(other, splits / "train")
    shutil.copytree(other / "cow", splits / "test/cow")
    result, _ = evaluate(run.path, f"--dataset=folder:{splits}", f"--output={tmp_path / 'out'}")
    assert (result["split"], result["examples"]) == ("test", 12)
    assert result["missing_classes"] == ["ant", "bee"]
    assert result["output"] == str(tmp_path / "out")


def test_other_classes_splits_and_changed_data_are_refused(run, photos, other, tmp_path):
    folder = f"--dataset=folder:{other}"
    assert "`split` must be all: " in refused(run.path, folder, "--split=test")
    assert "`split` must be train, validation or test" in refused(run.path, "--split=all")
    assert "existing folder" in refused(run.path, f"--dataset=folder:{tmp_path}/no")
    assert "must be that of the run" in refused(run.path, "--dataset=digits")
    changed = tmp_path / "changed"
    shutil.copytree(other, changed)
    (changed / "cow").rename(changed / "crow")
    error = refused(run.path, f"--dataset=folder:{changed}")
    assert "class of the run. Received: ['crow']" in error and 'Did you mean "cow"?' in error
    (changed / "crow").rename(changed / "cow")
    more = tmp_path / "more"
    shutil.copytree(photos, more)
    shutil.copy(more / "ant/00.png", more / "ant/more.png")
    assert "`split` must be all: " in refused(run.path, f"--dataset=folder:{more}", "--split=test")
    # The folder that the run was trained on must not be evaluated as another one.
    config = json.loads((run.path / "config.json").read_text())
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    (copy / "config.json").write_text(json.dumps({**config, "dataset": f"folder:{changed}"}))
    for flags in ((), (f"--dataset=folder:{changed}/",)):
        assert "must be that of the run" in refused(copy, *flags)


def test_an_image_that_is_removed_meanwhile_is_an_error(run, other, tmp_path, monkeypatch):
    shutil.copytree(other, tmp_path / "other")
    evaluation_batches = data.evaluation_batches

    def make_batches_and_remove(*args):
        batches = evaluation_batches(*args)
        (tmp_path / "other/cow/00.png").unlink()
        return batches

    monkeypatch.setattr(data, "evaluation_batches", make_batches_and_remove)
    code, out, log = command(
        "evaluate", f"--workdir={run.path}", f"--dataset=folder:{tmp_path}/other"
    )
    last = log.splitlines()[-1]
    assert code == 1 and not out and last.startswith("error: An example could not be read (")
    assert "00.png" in last and last.endswith("lists unreadable files.")


def test_no_other_file_is_removed(run, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "metrics.json").write_text("{}")
    (kept / "notes.txt").write_text("mine")
    for output, words in ((kept, "such as notes.txt"), (kept / "notes.txt", "a file"),
                          (kept / "notes.txt/x/y", "no folder that can be written")):  # fmt: skip
        error = refused(run.path, f"--output={output}")
        assert error.startswith("error: `output` must be a new or empty folder") and words in error
    assert (kept / "notes.txt").read_text() == "mine"
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy, ignore=shutil.ignore_patterns("evaluation"))
    (copy / "evaluation").write_text("a file, so that the report cannot be written")
    result, log = evaluate(copy)
    assert result["output"] is None and "warning: The report was not written" in log
    assert result["examples"] == 3


def test_digits_have_no_paths(data_dir, tmp_path):
    run, source = RunDirectory(tmp_path / "run"), data.open_source("digits", data_dir)
    config = {
        "seed": 0, "dataset": "digits", "data_dir": data_dir, "validation_percent": None,
        "shots": None,
    }  # fmt: skip
    preprocessing = data.Preprocessing((8, 8)).to_json()
    run.create(config, source.class_names, preprocessing, source.fingerprint())
    run.save_model(make("Ti/4", image_size=8, num_classes=10), "best")
    result, log = evaluate(run.path)
    assert (result["data"], result["dataset"], result["examples"]) == ("run", "digits", 179)
    assert result["accuracy"] < result["top_5_accuracy"] < 1 and "top-5 " in log
    rows = rows_of(result)
    assert [row["index"] for row in rows] == [str(i) for i in range(179)]
    assert not any(row["path"] for row in rows)
    labels = [source.class_names[label] for label in source.labels("test")]
    assert [row["class"] for row in rows] == labels
    page = Page(read(result, "report.html"))
    worst = max((r for r in rows if r["correct"] == "false"), key=lambda r: float(r["probability"]))
    assert page.images[2][0].startswith(f"image {worst['index']}\nclass: {worst['class']}\n")
