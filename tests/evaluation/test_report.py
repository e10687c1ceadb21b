"""The files and the page of an evaluation, from results that are made up."""

import base64
import csv
import io
import json
import re

import numpy as np
import pytest
from helpers.html_pages import Page
from helpers.sources import NumberedSource
from PIL import Image

from vitkeras import data
from vitkeras.errors import RunError
from vitkeras.evaluation import page, report
from vitkeras.evaluation.metrics import ExampleResults
from vitkeras.io.atomic import write_directory

HOSTILE = [
    "<script>alert(1)</script>",
    'comma, "quote"',
    "line\nbreak \x1b[31m",
    "\u732b $x^{$",
    "e",
]


def made(class_names, count, seed=0, **changes):
    """An evaluation with paths; every fourth prediction is wrong unless there is one class."""
    rng, num_classes = np.random.default_rng(seed), len(class_names)
    labels = rng.integers(0, num_classes, count).astype("int32")
    predicted = np.where(np.arange(count) % 4, labels, (labels + 1) % num_classes)
    probabilities = rng.uniform(0.3, 1, count).astype("float32")
    correct = labels == predicted
    losses = np.where(correct, -np.log(probabilities), 2).astype("float32")
    fields = {
        "labels": labels, "predicted": predicted.astype("int32"), "losses": losses,
        "probabilities": probabilities, "label_probabilities": np.exp(-losses),
        "in_top": correct | (rng.random(count) < 0.5),
    }  # fmt: skip
    paths = [f"/photos/<b>{i}</b>,\n.png" for i in range(count)]
    return report.Evaluation(ExampleResults(**fields | changes), class_names, paths)


def write(evaluation, folder):
    """Writes a report without thumbnails and returns its page."""
    text = page.render("<title>", ["\x1b intro & more"], evaluation, [("a\n<i>", png())])
    write_directory(folder, report.make_files(evaluation, {"data": "run"}, text), replace=True)
    assert {each.name for each in folder.iterdir()} <= set(report.FILES)
    markup = re.sub(r"base64,[\w+/=]+", "", text)
    assert "<script" not in markup and "http" not in markup and "url(" not in markup
    assert "\x1b" not in markup
    return Page(text)


def png():
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "PNG")
    return content.getvalue()


def read(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("num_classes", [1, 2, 5, 30, 70])
def test_a_report_has_all_numbers(num_classes, tmp_path):
    names = (HOSTILE + [f"class {i}" for i in range(num_classes)])[:num_classes]
    evaluation = made(names, 60)
    shown = write(evaluation, tmp_path / "out")
    assert shown.text.count("\n") and all(page.printable(name) in shown.text for name in names)
    assert len(shown.images) == 3

    results, rows = evaluation.results, read(tmp_path / "out/predictions.csv")
    assert rows[0] == [
        "index", "path", "class", "predicted", "probability", "probability_of_class", "correct"
    ]  # fmt: skip
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(60)]
    assert [row[1] for row in rows[1:]] == evaluation.paths
    assert [row[2] for row in rows[1:]] == [names[i] for i in results.labels]
    assert [row[3] for row in rows[1:]] == [names[i] for i in results.predicted]
    np.testing.assert_allclose([float(r[4]) for r in rows[1:]], results.probabilities, rtol=1e-5)
    np.testing.assert_allclose([float(r[5]) for r in rows[1:]], np.exp(-results.losses), rtol=1e-5)
    assert [row[6] == "true" for row in rows[1:]] == results.correct.tolist()

    matrix = read(tmp_path / "out/confusion.csv")
    assert matrix[0] == ["class", *names] and [row[0] for row in matrix[1:]] == names
    matrix = np.array([row[1:] for row in matrix[1:]], int)
    expected = np.zeros_like(matrix)
    np.add.at(expected, (results.labels, results.predicted), 1)
    np.testing.assert_array_equal(matrix, expected)

    classes = read(tmp_path / "out/per_class.csv")
    assert classes[0] == list(report.CLASS_COLUMNS) and [row[0] for row in classes[1:]] == names
    assert [int(row[4]) for row in classes[1:]] == expected.sum(1).tolist()
    assert [int(row[5]) for row in classes[1:]] == expected.sum(0).tolist()

    record = json.loads((tmp_path / "out/metrics.json").read_text())
    summary = evaluation.summary()
    assert record.items() >= summary.items() and record["data"] == "run"
    assert summary["accuracy"] == results.correct.mean() and summary["examples"] == 60
    top = results.in_top.mean() if num_classes > 5 else None
    assert summary["top_5_accuracy"] == top and ("top-5" in shown.text) == (num_classes > 5)
    assert summary["missing_classes"] == [
        n for n, c in zip(names, expected.sum(1), strict=True) if c == 0
    ]
    assert sum(each["images"] for each in record["calibration"]) == 60
    assert [each["class"] for each in record["classes"]] == names
    counts = [each["images"] for each in record["confusions"]]
    assert counts == sorted(counts, reverse=True) and sum(counts) == (~results.correct).sum()

    lines = report.format_table(evaluation).splitlines()
    assert lines[0].startswith(f"60 images: accuracy {summary['accuracy']:.1%}, ")
    table = lines[1 : min(num_classes, 20) + 2]
    assert len(set(map(report._display_width, table))) == 1  # also of wide characters
    assert len(lines) < 30 and all(line.isprintable() for line in lines)
    limit = [f"(the 20 classes with the lowest F1 of {num_classes})"] if num_classes > 20 else []
    assert lines[min(num_classes, 20) + 2 :][: len(limit)] == limit


def test_many_classes_have_no_matrix(tmp_path):
    evaluation = made([f"n{i:05d}" for i in range(1001)], 3000)
    shown = write(evaluation, tmp_path / "out")
    assert "up to 1,000 classes; here are 1,001" in shown.text and len(shown.images) == 2
    assert not (tmp_path / "out/confusion.csv").exists()
    assert "The table has the 50 most frequent" in shown.text
    assert len(json.loads((tmp_path / "out/metrics.json").read_text())["confusions"]) == 50
    assert len(read(tmp_path / "out/per_class.csv")) == 1002


def test_a_class_that_is_never_predicted_and_one_without_images(tmp_path):
    labels, predicted = np.array([0, 0, 1, 1], "int32"), np.array([0, 0, 0, 0], "int32")
    evaluation = made(["a", "b", "c"], 4, labels=labels, predicted=predicted)
    shown = write(evaluation, tmp_path / "out")
    assert read(tmp_path / "out/per_class.csv")[1:] == [
        ["a", "0.5", "1.0", "0.6666666666666666", "2", "4"], ["b", "", "0.0", "0.0", "2", "0"],
        ["c", "", "", "", "0", "0"],
    ]  # fmt: skip
    summary = evaluation.summary()
    assert summary["missing_classes"] == ["c"] and summary["macro_recall"] == 0.5
    assert summary["macro_precision"] == 0.25 and "mean over the 2 classes" in shown.text
    lines = report.format_table(evaluation).splitlines()
    assert lines[2].split() == ["b", "-", "0.000", "0.000", "2", "0"]
    assert lines[4].split() == ["c", "-", "-", "-", "0", "0"]
    assert lines[5] == "2 images (100%) of b are predicted as a"


def test_logits_that_are_not_finite_are_refused():
    losses = np.array([1, np.nan, np.inf, 0], "float32")
    with pytest.raises(RunError, match="must be finite. .* 2 of 4 images, first /photos/<b>1</b>"):
        made(["a", "b"], 4, losses=losses)


@pytest.mark.parametrize("size", [(4, 4), (320, 200)])
def test_thumbnails_are_the_most_confident_mistakes(size):
    source, rng = NumberedSource(), np.random.default_rng(0)
    labels, wrong = np.arange(50) % 2, rng.random(50) < 0.7
    results = ExampleResults(
        labels, np.where(wrong, 1 - labels, labels), rng.random(50).astype("float32"),
        np.ones(50, "float32"), np.ones(50, "float32"), np.ones(50, bool),
    )  # fmt: skip
    evaluation = report.Evaluation(results, source.class_names, None)
    thumbnails = page.mistake_thumbnails(evaluation, source, "test", data.Preprocessing(size))
    expected = sorted(np.flatnonzero(wrong), key=lambda i: -results.probabilities[i])[:24]
    assert len(thumbnails) == 24 < wrong.sum()
    for index, (caption, content) in zip(expected, thumbnails, strict=True):
        names = source.class_names[labels[index]], source.class_names[1 - labels[index]]
        probability = f"{results.probabilities[index]:.1%}"
        assert caption == (
            f"image {index}\nclass: {names[0]}\npredicted: {names[1]} ({probability})"
        )
        picture = np.asarray(Image.open(io.BytesIO(content)))
        assert max(picture.shape) == 160
        assert picture.shape[0] != 160 or abs(int(picture[0, 0, 0]) - index) <= 1
    text = page.render("title", [], evaluation, thumbnails)
    assert f"24 of {wrong.sum()} mistakes" in text
    pictures = [base64.b64decode(s.partition(",")[2]) for _, s in Page(text).images][2:]
    assert pictures == [content for _, content in thumbnails]


def test_a_report_replaces_an_earlier_one_at_once(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(made([f"{i}" for i in range(3)], 8), out)
    before = (out / "metrics.json").read_bytes()
    evaluation = made(["a", "b"], 20)
    files = report.make_files(evaluation, {}, "page")

    def fail(file):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_directory(out, {**files, "predictions.csv": fail}, replace=True)
    assert (out / "metrics.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    write_directory(out, files, replace=True)
    assert json.loads((out / "metrics.json").read_text())["examples"] == 20
    assert len(read(out / "predictions.csv")) == 21 and len(list(tmp_path.iterdir())) == 1
