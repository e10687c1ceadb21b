"""The HTML page of an evaluation."""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from vitkeras.data.examples import Source
from vitkeras.data.folder_listing import printable
from vitkeras.data.preprocessing import Preprocessing
from vitkeras.evaluation import figures
from vitkeras.evaluation.classification import NUM_BINS
from vitkeras.evaluation.metrics import TOP
from vitkeras.evaluation.report import MAX_CONFUSIONS, MAX_MATRIX, Evaluation
from vitkeras.io import html_page
from vitkeras.io.figures import to_png
from vitkeras.io.html_page import Section, Table

#: Longer side of a thumbnail, in pixels.
THUMBNAIL_SIZE = 160


def render(
    title: str,
    introduction: Iterable[str],
    evaluation: Evaluation,
    thumbnails: list[tuple[str, bytes]],
) -> str:
    """Returns the HTML text of the page of an evaluation.

    Args:
        title: Title of the page.
        introduction: Paragraphs below the title.
        evaluation: The results.
        thumbnails: Result of `mistake_thumbnails`.
    """
    return html_page.render(
        printable(title),
        map(printable, introduction),
        [
            _metrics_section(evaluation),
            _classes_section(evaluation),
            _confusions_section(evaluation),
            _calibration_section(evaluation),
            _mistakes_section(evaluation, thumbnails),
        ],
    )


def mistake_thumbnails(
    evaluation: Evaluation, source: Source, split: str, preprocessing: Preprocessing
) -> list[tuple[str, bytes]]:
    """Returns captions and PNG files of the most confident mistakes, the worst first.

    Args:
        evaluation: The results.
        source: The data source.
        split: The split of the examples.
        preprocessing: The preprocessing of the run.
    """
    order = evaluation.mistakes()
    indices = np.sort(order)
    examples = source.examples(split).at(indices).as_numpy_iterator()
    images = {
        index: preprocessing.evaluation_image(example["image_bytes"]).numpy()
        for index, example in zip(indices.tolist(), examples, strict=True)
    }
    names, results = evaluation.class_names, evaluation.results
    return [
        (
            f"{printable(evaluation.name(i))}\nclass: {printable(names[results.labels[i]])}\n"
            f"predicted: {printable(names[results.predicted[i]])} "
            f"({results.probabilities[i]:.1%})",
            _thumbnail(images[i]),
        )
        for i in order.tolist()
    ]


def _thumbnail(image):
    """Returns a PNG of an image with a longer side of about `THUMBNAIL_SIZE` pixels."""
    picture = Image.fromarray(image)
    scale = THUMBNAIL_SIZE // max(picture.size)
    if scale > 1:  # the pixels of small images stay visible
        size = (scale * picture.width, scale * picture.height)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    else:
        picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _metrics_section(evaluation):
    summary = evaluation.summary()
    present = len(evaluation.class_names) - len(summary["missing_classes"])
    loss = "mean cross-entropy"
    if evaluation.loss == "sigmoid":
        loss = "mean sigmoid cross-entropy, summed over the classes"
    over_classes = f"mean over the {present} classes with images"
    rows = [
        ("accuracy", summary["accuracy"], "fraction of the images whose predicted class is theirs"),
        (f"top-{TOP} accuracy", summary[f"top_{TOP}_accuracy"],
         f"fraction of the images whose class is among the {TOP} best"),
        ("loss", summary["loss"], f"{loss}, in nats; 0 is perfect"),
        ("macro precision", summary["macro_precision"], f"precision, {over_classes}"),
        ("macro recall", summary["macro_recall"], f"recall, {over_classes}; balanced accuracy"),
        ("macro F1", summary["macro_f1"], f"F1, {over_classes}"),
        ("calibration error", summary["ece"],
         "mean difference between probability and accuracy (ECE); 0 is perfect"),
    ]  # fmt: skip
    table = Table(("metric", "value", "meaning"), [row for row in rows if row[1] is not None])
    return Section("Metrics", f"{summary['examples']:,} images.", tables=[table])


def _classes_section(evaluation):
    text = (
        "The classes with the lowest F1 first. Precision: fraction of the images predicted as the "
        "class that are of it. Recall: fraction of the images of the class that are predicted as "
        "it. F1: harmonic mean of both. Images: those of the class. Predicted: those predicted as "
        "the class."
    )
    order = evaluation.class_metrics.worst_first()
    rows = [[printable(name), *rest] for name, *rest in evaluation.class_rows(order)]
    columns = ("class", "precision", "recall", "F1", "images", "predicted")
    return Section("Classes", text, tables=[Table(columns, rows)])


def _confusions_section(evaluation):
    names = list(map(printable, evaluation.class_names))
    rows = [
        [printable(label), printable(predicted), count, fraction]
        for label, predicted, count, fraction in evaluation.confusion_rows()
    ]
    total = len(evaluation.confusions.mistakes().counts)
    text = f"Pairs of a class and another class that is predicted for its images: {total:,}."
    if total > MAX_CONFUSIONS:
        text += f" The table has the {MAX_CONFUSIONS} most frequent."
    table = Table(("class", "predicted", "images", "fraction of the class"), rows)
    pictures = []
    if len(names) <= MAX_MATRIX:
        picture = figures.plot_confusions(evaluation.confusions.matrix(len(names)), names)
        caption = (
            "Confusion matrix: a row per class, a column per predicted class. The color is the "
            "fraction of the images of the class, on a square root scale; zeros are blank."
        )
        if len(names) > figures.MAX_NAMES:
            caption += f" Classes {names[0]} to {names[-1]}, in the order of the run."
        pictures.append((caption, to_png(picture)))
    else:
        text += f" The matrix is drawn for up to {MAX_MATRIX:,} classes; here are {len(names):,}."
    return Section("Confusions", text, pictures, [table] if rows else [])


def _calibration_section(evaluation):
    text = (
        f"The images in {NUM_BINS} bins by the probability of their predicted class. Where bars "
        "are below the line, probabilities are too high."
    )
    caption = (
        "Reliability diagram: accuracy in each bin, and the number of images. Calibration error: "
        f"{evaluation.calibration.error:.3f}."
    )
    return Section(
        "Calibration", text, [(caption, to_png(figures.plot_reliability(evaluation.calibration)))]
    )


def _mistakes_section(evaluation, thumbnails):
    count = int((~evaluation.results.correct).sum())
    text = (
        f"{len(thumbnails)} of {count:,} mistakes, by the probability of the predicted class, as "
        "the model takes the images. Some may be labeled wrongly."
        if count
        else "None."
    )
    return Section("Most confident mistakes", text, thumbnails=thumbnails)
